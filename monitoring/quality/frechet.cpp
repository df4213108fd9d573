// Shapes: n samples, d features, r = rank of the reference's covariance.
#include "monitoring/quality/frechet.h"

#include <ATen/ATen.h>
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <cmath>

#include "data/error.h"
#include "monitoring/quality/one_thread_each.h"

namespace laterna::monitoring {
namespace {

// The block size is fixed, since another order of summation would round differently. kRows samples
// fit in a cache; kColumns gives enough panels to keep the threads busy at d = 2048.
constexpr std::int64_t kRows = 1024, kColumns = 256;

void require_finite(const at::Tensor& sum, const char* what) {
  if (!std::isfinite(sum.item<double>())) {
    throw data::InputError(fmt::format(
        "{}: not all values are finite; check how the images or the statistics were made", what));
  }
}

void check(const Statistics& s) {
  if (s.mean.dim() != 1 || s.mean.size(0) == 0 || s.covariance.dim() != 2 ||
      s.covariance.size(0) != s.mean.size(0) || s.covariance.size(1) != s.mean.size(0)) {
    throw data::InputError(fmt::format(
        "statistics: mean {} and covariance {} do not match; they must be [d] and [d, d]",
        fmt::join(s.mean.sizes(), "x"), fmt::join(s.covariance.sizes(), "x")));
  }
  require_finite(s.mean.sum(), "mean");
  require_finite(s.covariance.sum(), "covariance");
}

at::Tensor mean_of(const at::Tensor& features) {
  const std::int64_t n = features.size(0);
  at::Tensor sum = at::zeros({features.size(1)}, at::kDouble);
  for (std::int64_t row = 0; row < n; row += kRows) {
    sum += features.slice(0, row, std::min(n, row + kRows)).to(at::kDouble).sum(0);
  }
  return sum / double(n);
}

}  // namespace

Statistics statistics_of(const at::Tensor& features) {
  if (features.dim() != 2 || features.size(0) < 2) {
    throw data::InputError(
        fmt::format("features [{}]: statistics need at least two samples, [n, d]",
                    fmt::join(features.sizes(), ", ")));
  }
  const OneThreadEach math;
  const std::int64_t n = features.size(0), d = features.size(1);
  const at::Tensor x = features.detach(), mean = mean_of(x);
  require_finite(mean.sum(), "features");
  at::Tensor lower = at::zeros({d, d}, at::kDouble);
  math.each((d + kColumns - 1) / kColumns, [&](std::int64_t panel) {
    const std::int64_t begin = panel * kColumns, width = std::min(kColumns, d - begin);
    at::Tensor products = at::zeros({d - begin, width}, at::kDouble);
    for (std::int64_t row = 0; row < n; row += kRows) {
      const at::Tensor centred =
          x.slice(0, row, std::min(n, row + kRows)).slice(1, begin).to(at::kDouble) -
          mean.slice(0, begin);  // [rows, d - begin]
      products.addmm_(centred.t(), centred.slice(1, 0, width));
    }
    lower.slice(0, begin).slice(1, begin, begin + width).copy_(products / double(n - 1));
  });
  return {mean, lower.tril() + lower.tril(-1).t(), n};
}

FrechetReference::FrechetReference(const Statistics& statistics) {
  const OneThreadEach math;
  check(statistics);
  mean_ = statistics.mean.to(at::kDouble);
  const at::Tensor covariance = statistics.covariance.to(at::kDouble);
  trace_ = covariance.trace().item<double>();
  const auto [values, vectors] = at::linalg_eigh(covariance);  // ascending
  largest_ = values[-1].item<double>();
  if (values[0].item<double>() < -1e-4 * std::max(largest_, 0.0)) {
    throw data::InputError(
        fmt::format("covariance: not a covariance matrix: an eigenvalue is {}; the largest is {}",
                    values[0].item<double>(), largest_));
  }
  const std::int64_t rank = (values > kEigenvalueNoise * largest_).sum().item<std::int64_t>();
  factor_ = (vectors * values.clamp_min(0).sqrt()).slice(1, dimension() - rank).contiguous();
}

double FrechetReference::distance(const Statistics& other) const {
  const OneThreadEach math;
  check(other);
  if (other.mean.size(0) != dimension()) {
    throw data::InputError(fmt::format(
        "features of dimension {} cannot be compared with features of dimension {}: they come from "
        "different extractors",
        other.mean.size(0), dimension()));
  }
  const at::Tensor covariance = other.covariance.to(at::kDouble);
  const at::Tensor inner = factor_.t().mm(covariance.mm(factor_));  // [r,r]
  const double noise = kEigenvalueNoise * largest_ * covariance.norm().item<double>();
  const double gap = (mean_ - other.mean).square().sum().item<double>();
  const double trace = covariance.trace().item<double>();
  return std::max(0.0, gap + trace_ + trace - 2 * trace_of_root(inner, noise));
}

double frechet_distance(const Statistics& a, const Statistics& b) {
  return FrechetReference(a).distance(b);
}

double trace_of_root(const at::Tensor& matrix, double noise) {
  if (matrix.size(0) == 0) return 0;
  const at::Tensor values = at::linalg_eigvalsh(matrix, "L");  // ascending
  const double least = std::max(noise, kEigenvalueNoise * values[-1].item<double>());
  return at::where(values > least, values, 0).sqrt().sum().item<double>();
}

}  // namespace laterna::monitoring
