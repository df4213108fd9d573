// One thread evaluates a subset, with m x m kernel values at a time (8 MB at m = 1000).
#include "monitoring/quality/kernel_distance.h"

#include <ATen/ATen.h>
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <cmath>
#include <vector>

#include "data/error.h"
#include "monitoring/quality/choice.h"
#include "monitoring/quality/one_thread_each.h"

namespace laterna::monitoring {
namespace {

at::Tensor take(const at::Tensor& features, std::int64_t size, Choice choice, std::int64_t index) {
  auto chosen = choose(features.size(0), size, choice, index);
  const at::Tensor rows = at::from_blob(chosen.data(), {size}, at::kLong);
  return features.index_select(0, rows).to(at::kDouble);
}

at::Tensor kernel(const at::Tensor& x, const at::Tensor& y) {  // [m,d], [m,d] -> [m,m]
  return x.mm(y.t()).div_(double(x.size(1))).add_(1).pow_(3);
}

/// Returns the mean of the kernel over pairs of different samples.
double mean_of_pairs(const at::Tensor& kernel) {
  const double m = double(kernel.size(0));
  return (kernel.sum() - kernel.diagonal().sum()).item<double>() / (m * (m - 1));
}

}  // namespace

KernelDistance kernel_distance(const at::Tensor& a, const at::Tensor& b, std::int64_t subsets,
                               std::int64_t subset_size) {
  if (a.dim() != 2 || b.dim() != 2 || a.size(1) != b.size(1) || a.size(0) < 2 || b.size(0) < 2) {
    throw data::InputError(
        fmt::format("features [{}] and [{}]: the kernel distance needs at least two samples in "
                    "each set and equal dimensions",
                    fmt::join(a.sizes(), ", "), fmt::join(b.sizes(), ", ")));
  }
  const OneThreadEach math;
  const std::int64_t size = std::min({subset_size, a.size(0), b.size(0)});
  std::vector<double> values(subsets);
  math.each(subsets, [&](std::int64_t i) {
    const at::Tensor x = take(a.detach(), size, Choice::kernel_generated, i);
    const at::Tensor y = take(b.detach(), size, Choice::kernel_reference, i);
    values[i] = mean_of_pairs(kernel(x, x)) + mean_of_pairs(kernel(y, y)) -
                2 * kernel(x, y).mean().item<double>();
  });
  KernelDistance distance;
  for (const double value : values) distance.mean += value / double(subsets);
  for (const double value : values) {
    distance.deviation += (value - distance.mean) * (value - distance.mean) / double(subsets);
  }
  distance.deviation = std::sqrt(distance.deviation);
  if (!std::isfinite(distance.mean)) {
    throw data::InputError("features: not all values are finite; check how the images were made");
  }
  return distance;
}

}  // namespace laterna::monitoring
