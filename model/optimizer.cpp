#include "model/optimizer.h"

#include <ATen/ATen.h>
#include <ATen/Dispatch.h>
#include <ATen/Parallel.h>

#include <cmath>
#include <vector>

#include "model/kernels/cpu/kernels.h"
#include "model/kernels/cpu/parallel.h"
#include "model/probes/part.h"
#include "model/spiking/spikes.h"

namespace laterna::model {
namespace {

constexpr double kBeta1 = 0.9, kBeta2 = 0.999, kEpsilon = 1e-8;

/// sum_of_squares in tensor operations, whose order of addition is fixed, too; in parts, so that
/// the float64 copies stay small.
double sum_of_squares_reference(const at::Tensor& flat) {
  constexpr std::int64_t kPart = 1 << 24;
  at::Tensor sum = at::zeros({}, flat.options().dtype(at::kDouble));
  for (const auto& part : flat.split(kPart)) sum += part.to(at::kDouble).square().sum();
  return sum.item<double>();
}

}  // namespace

double sum_of_squares(const at::Tensor& flat) {
  RECORD_USER_SCOPE(part::kOptimiser);
  if (!has_kernels(flat.device())) return sum_of_squares_reference(flat);
  constexpr std::int64_t kPart = 1 << 15;  // elements of a partial sum: fixed, so the order is
  const std::int64_t size = flat.numel(), parts = (size + kPart - 1) / kPart;
  std::vector<double> sums(parts);
  AT_DISPATCH_FLOATING_TYPES(flat.scalar_type(), "sum_of_squares", [&] {
    const auto* x = flat.const_data_ptr<scalar_t>();
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
  RECORD_USER_SCOPE(part::kOptimiser);
  const at::NoGradGuard no_grad;
  const auto n = static_cast<double>(updates_++);
  Update update{};
  update.gradient_scale = gradient_scale;
  update.learning_rate = learning_rate;
  update.correction1 = 1 - std::pow(kBeta1, n + 1);
  update.correction2 = 1 - std::pow(kBeta2, n + 1);
  update.average_decay = std::min(ema_, (1 + n) / (10 + n));
  has_kernels(parameters_.values().device()) ? step_fused(update) : step_reference(update);
}

void Optimizer::step_fused(const Update& update) {
  const at::Tensor& values = parameters_.values();
  AT_DISPATCH_FLOATING_TYPES(values.scalar_type(), "adamw", [&] {
    kernels::AdamW<scalar_t> a{};
    a.weight = values.data_ptr<scalar_t>();
    a.first = first_.data_ptr<scalar_t>();
    a.second = second_.data_ptr<scalar_t>();
    a.average = average_.data_ptr<scalar_t>();
    a.gradient = parameters_.gradient().const_data_ptr<scalar_t>();
    a.gradient_scale = static_cast<scalar_t>(update.gradient_scale);
    a.learning_rate = static_cast<scalar_t>(update.learning_rate);
    a.beta1 = static_cast<scalar_t>(kBeta1);
    a.beta2 = static_cast<scalar_t>(kBeta2);
    a.epsilon = static_cast<scalar_t>(kEpsilon);
    a.correction1 = static_cast<scalar_t>(update.correction1);
    a.correction2 = static_cast<scalar_t>(update.correction2);
    a.average_decay = static_cast<scalar_t>(update.average_decay);
    kernels::for_ranges(values.numel(), [&](std::int64_t, std::int64_t begin, std::int64_t end) {
      kernels::kernels<scalar_t>().adamw(a, begin, end);
    });
  });
}

void Optimizer::step_reference(const Update& update) {
  const at::Tensor& values = parameters_.values();
  const at::Tensor gradient = parameters_.gradient() * update.gradient_scale;
  first_.mul_(kBeta1).add_(gradient, 1 - kBeta1);
  second_.mul_(kBeta2).addcmul_(gradient, gradient, 1 - kBeta2);
  const at::Tensor root = (second_ / update.correction2).sqrt_().add_(kEpsilon);
  values.addcdiv_(first_, root, -update.learning_rate / update.correction1);
  average_.lerp_(values, 1 - update.average_decay);
}

}  // namespace laterna::model
