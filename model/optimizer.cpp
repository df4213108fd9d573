#include "model/optimizer.h"

#include <ATen/ATen.h>
#include <ATen/Dispatch.h>
#include <ATen/Parallel.h>

#include <cmath>
#include <vector>

#include "model/kernels/kernels.h"
#include "model/kernels/parallel.h"

namespace laterna::model {
namespace {

constexpr double kBeta1 = 0.9, kBeta2 = 0.999, kEpsilon = 1e-8;

}  // namespace

double sum_of_squares(const at::Tensor& flat) {
  constexpr std::int64_t kPart = 1 << 15;  // elements summed at once: fixed, so the order is
  const std::int64_t size = flat.numel(), parts = (size + kPart - 1) / kPart;
  const at::Tensor host = flat.cpu();
  std::vector<double> sums(parts);
  AT_DISPATCH_FLOATING_TYPES(host.scalar_type(), "sum_of_squares", [&] {
    const auto* x = host.const_data_ptr<scalar_t>();
    at::parallel_for(0, parts, 1, [&](std::int64_t begin, std::int64_t end) {
      for (std::int64_t part = begin; part < end; ++part) {
        const std::int64_t begin_at = part * kPart;
        sums[part] = kernels::kernels<scalar_t>().sum_of_squares(x + begin_at,
                                                                 std::min(kPart, size - begin_at));
      }
    });
  });
  double total = 0;
  for (const double sum : sums) total += sum;
  return total;
}

Optimizer::Optimizer(const Parameters& parameters, double ema)
    : parameters_(parameters),
      ema_(ema),
      first_(at::zeros_like(parameters.values())),
      second_(at::zeros_like(parameters.values())),
      average_(parameters.values().clone()) {}

void Optimizer::step(double learning_rate, double gradient_scale) {
  const at::NoGradGuard no_grad;
  const auto n = static_cast<double>(updates_++);
  const at::Tensor& values = parameters_.values();
  AT_DISPATCH_FLOATING_TYPES(values.scalar_type(), "adamw", [&] {
    kernels::AdamW<scalar_t> a{};
    a.weight = values.data_ptr<scalar_t>();
    a.first = first_.data_ptr<scalar_t>();
    a.second = second_.data_ptr<scalar_t>();
    a.average = average_.data_ptr<scalar_t>();
    a.gradient = parameters_.gradient().const_data_ptr<scalar_t>();
    a.gradient_scale = static_cast<scalar_t>(gradient_scale);
    a.learning_rate = static_cast<scalar_t>(learning_rate);
    a.beta1 = static_cast<scalar_t>(kBeta1);
    a.beta2 = static_cast<scalar_t>(kBeta2);
    a.epsilon = static_cast<scalar_t>(kEpsilon);
    a.correction1 = static_cast<scalar_t>(1 - std::pow(kBeta1, n + 1));
    a.correction2 = static_cast<scalar_t>(1 - std::pow(kBeta2, n + 1));
    a.average_decay = static_cast<scalar_t>(std::min(ema_, (1 + n) / (10 + n)));
    kernels::for_ranges(values.numel(), [&](std::int64_t, std::int64_t begin, std::int64_t end) {
      kernels::kernels<scalar_t>().adamw(a, begin, end);
    });
  });
}

}  // namespace laterna::model
