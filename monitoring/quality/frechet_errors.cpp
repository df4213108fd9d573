// With Y = (X - centre) F and W = diag(times), the matrix F' S F of a resample is Y' W Y, minus the
// contribution of its shifted mean, over (total - 1): a resample costs one product and one
// eigenvalue problem. Shapes: n samples, d features, r = rank of the reference's covariance.
#include "monitoring/quality/frechet_errors.h"

#include <ATen/ATen.h>
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <numeric>

#include "data/error.h"
#include "monitoring/quality/choice.h"
#include "monitoring/quality/one_thread_each.h"

namespace laterna::monitoring {
namespace {

constexpr std::int64_t kRows = 1024, kColumns = 512;  // fixed: other sizes round differently
constexpr std::int64_t kSizes = 15;                   // subset sizes, as in Chong and Forsyth

/// Returns the quantile at `share`, by linear interpolation between sorted values.
double quantile(const std::vector<double>& sorted, double share) {
  const double place = share * double(sorted.size() - 1);
  const auto below = static_cast<std::size_t>(place);
  const std::size_t above = std::min(below + 1, sorted.size() - 1);
  return sorted[below] + (place - double(below)) * (sorted[above] - sorted[below]);
}

double mean(const std::vector<double>& values) {
  return std::accumulate(values.begin(), values.end(), 0.0) / double(values.size());
}

/// Returns the value at x = 0 of the least-squares line through (x, y).
double intercept(const std::vector<double>& x, const std::vector<double>& y) {
  const double mean_x = mean(x), mean_y = mean(y);
  double products = 0, squares = 0;
  for (std::size_t i = 0; i < x.size(); ++i) {
    products += (x[i] - mean_x) * (y[i] - mean_y);
    squares += (x[i] - mean_x) * (x[i] - mean_x);
  }
  return mean_y - products / squares * mean_x;
}

/// One of the disjoint random subsets of a size.
struct Subset {
  std::int64_t size_index, begin, end;  // [begin, end) of the size's permutation
};

}  // namespace

FrechetResampler::FrechetResampler(FrechetReference reference, const at::Tensor& features)
    : reference_(std::move(reference)), features_(features.detach()) {
  if (features_.dim() != 2 || features_.size(0) < 2 ||
      features_.size(1) != reference_.dimension()) {
    throw data::InputError(
        fmt::format("features [{}] do not match a reference of dimension {}: at least two samples "
                    "from the same extractor are needed",
                    fmt::join(features_.sizes(), ", "), reference_.dimension()));
  }
  const OneThreadEach math;
  const std::int64_t n = features_.size(0), blocks = (n + kRows - 1) / kRows;
  centre_ = at::zeros({features_.size(1)}, at::kDouble);
  projected_ = at::empty({n, reference_.factor().size(1)}, at::kDouble);
  squares_ = at::empty({n}, at::kDouble);
  const auto rows = [&](const at::Tensor& of, std::int64_t block) {
    return of.slice(0, block * kRows, std::min(n, (block + 1) * kRows));
  };
  for (std::int64_t i = 0; i < blocks; ++i) centre_ += rows(features_, i).to(at::kDouble).sum(0);
  centre_ /= double(n);
  if (!centre_.isfinite().all().item<bool>()) {
    throw data::InputError("features: not all values are finite; check how the images were made");
  }
  math.each(blocks, [&](std::int64_t block) {
    const at::Tensor centred = rows(features_, block).to(at::kDouble) - centre_;
    rows(projected_, block).copy_(centred.mm(reference_.factor()));
    rows(squares_, block).copy_(centred.square().sum(1));
  });
}

double FrechetResampler::distance(const std::vector<std::int32_t>& times) const {
  const OneThreadEach math;
  std::vector<std::int64_t> taken;
  std::vector<double> weight;
  for (std::size_t i = 0; i < times.size(); ++i) {
    if (times[i] == 0) continue;
    taken.push_back(static_cast<std::int64_t>(i));
    weight.push_back(times[i]);
  }
  const auto count = static_cast<std::int64_t>(taken.size());
  const std::int64_t rank = projected_.size(1);
  const at::Tensor indices = at::from_blob(taken.data(), {count}, at::kLong);
  const at::Tensor weights = at::from_blob(weight.data(), {count}, at::kDouble);
  const double total = weights.sum().item<double>();
  at::Tensor shift = at::zeros_like(centre_);               // [d] mean of the resample - centre
  at::Tensor inner = at::zeros({rank, rank}, at::kDouble);  // lower triangle, by panels
  for (std::int64_t row = 0; row < count; row += kRows) {
    const at::Tensor rows = indices.slice(0, row, std::min(count, row + kRows));
    const at::Tensor w = weights.slice(0, row, std::min(count, row + kRows));
    const at::Tensor x = features_.index_select(0, rows).to(at::kDouble) - centre_;
    shift += x.t().mv(w);
    const at::Tensor y = projected_.index_select(0, rows) * w.sqrt().unsqueeze(1);
    for (std::int64_t c = 0; c < rank; c += kColumns) {
      const std::int64_t end = std::min(rank, c + kColumns);
      inner.slice(0, c).slice(1, c, end).addmm_(y.slice(1, c).t(), y.slice(1, c, end));
    }
  }
  shift /= total;
  const at::Tensor moved = reference_.factor().t().mv(shift);  // [r]
  inner.addr_(moved, moved, 1, -total).div_(total - 1);
  const double trace =
      (squares_.index_select(0, indices).dot(weights) - total * shift.square().sum())
          .item<double>() /
      (total - 1);
  const double gap = (centre_ + shift - reference_.mean()).square().sum().item<double>();
  return std::max(0.0, gap + reference_.trace() + trace - 2 * trace_of_root(inner, 0));
}

Interval FrechetResampler::interval(std::int64_t replicas) const {
  const auto n = features_.size(0);
  const double fid = distance(std::vector<std::int32_t>(n, 1));
  std::vector<double> distances(replicas);
  OneThreadEach().each(replicas, [&](std::int64_t replica) {
    std::vector<std::int32_t> times(n);
    auto random = random_choice(Choice::bootstrap, replica);
    for (std::int64_t i = 0; i < n; ++i) ++times[random.below(static_cast<std::uint32_t>(n))];
    distances[replica] = distance(times);
  });
  const double excess = mean(distances) - fid;
  std::sort(distances.begin(), distances.end());
  return {std::max(0.0, quantile(distances, 0.025) - excess),
          std::max(0.0, quantile(distances, 0.975) - excess)};
}

std::int64_t FrechetResampler::affordable_replicas() const {
  const double n = double(features_.size(0)), r = double(projected_.size(1));
  const double budget = 2e12;  // multiplications: minutes on two cores
  return static_cast<std::int64_t>(std::clamp(budget / ((n + r) * r * r + 1), 50.0, 1000.0));
}

double FrechetResampler::infinity() const {
  const std::int64_t n = features_.size(0), d = reference_.dimension();
  if (n < kLeastSamples) {
    throw data::InputError(fmt::format(
        "{} samples are too few to extrapolate from; at least {} are needed", n, kLeastSamples));
  }
  const std::int64_t smallest = std::max(n / 10, std::min(2 * d, n / 2));
  std::vector<Subset> subsets;
  std::vector<double> inverse(kSizes);
  for (std::int64_t i = 0; i < kSizes; ++i) {
    const std::int64_t size = smallest + (n - smallest) * i / (kSizes - 1);
    inverse[i] = 1 / double(size);
    for (std::int64_t begin = 0; begin + size <= n; begin += size) {
      subsets.push_back({i, begin, begin + size});
    }
  }
  std::vector<double> distances(subsets.size());
  OneThreadEach().each(std::int64_t(subsets.size()), [&](std::int64_t i) {
    const Subset& subset = subsets[i];
    const auto order = choose(n, n, Choice::frechet_infinity, subset.size_index);
    std::vector<std::int32_t> times(n);
    for (std::int64_t j = subset.begin; j < subset.end; ++j) times[order[j]] = 1;
    distances[i] = distance(times);
  });
  std::vector<std::vector<double>> by_size(kSizes);
  for (std::size_t i = 0; i < subsets.size(); ++i) {
    by_size[subsets[i].size_index].push_back(distances[i]);
  }
  std::vector<double> means;
  for (const auto& values : by_size) means.push_back(mean(values));
  return intercept(inverse, means);
}

}  // namespace laterna::monitoring
