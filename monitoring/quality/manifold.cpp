// Distances are computed in blocks of rows, so that the matrix of all pairs is never held: 20 MB
// per thread at 10,000 samples. Shapes: m samples of each set, d features.
#include "monitoring/quality/manifold.h"

#include <ATen/ATen.h>
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "data/error.h"
#include "monitoring/quality/choice.h"
#include "monitoring/quality/one_thread_each.h"

namespace laterna::monitoring {
namespace {

constexpr std::int64_t kRows = 256;

struct Points {
  at::Tensor at;       // [m,d] float64
  at::Tensor squares;  // [m]: |x|^2
};

Points take(const at::Tensor& features, std::int64_t count, Choice choice,
            const at::Tensor& centre) {
  auto chosen = choose(features.size(0), count, choice, 0);
  const at::Tensor rows = at::from_blob(chosen.data(), {count}, at::kLong);
  const at::Tensor x = features.index_select(0, rows).to(at::kDouble) - centre;
  return {x, x.square().sum(1)};
}

/// Returns the squared distances of rows [begin, end) of a to all of b: [end - begin, m].
at::Tensor distances(const Points& a, std::int64_t begin, std::int64_t end, const Points& b) {
  return a.at.slice(0, begin, end)
      .mm(b.at.t())
      .mul_(-2)
      .add_(a.squares.slice(0, begin, end).unsqueeze(1))
      .add_(b.squares)
      .clamp_min_(0);
}

/// Calls work(begin, end) for blocks of the rows 0..m-1.
template <typename Work>
void each_block(const OneThreadEach& math, std::int64_t m, const Work& work) {
  math.each((m + kRows - 1) / kRows,
            [&](std::int64_t block) { work(block * kRows, std::min(m, (block + 1) * kRows)); });
}

/// Returns the squared distance of each point to its k-th nearest other point: [m].
at::Tensor radii(const OneThreadEach& math, const Points& points, std::int64_t k) {
  const at::Tensor radii = at::empty_like(points.squares);
  each_block(math, radii.size(0), [&](std::int64_t begin, std::int64_t end) {
    const at::Tensor to_all = distances(points, begin, end, points);
    to_all.diagonal(begin).fill_(std::numeric_limits<double>::infinity());
    radii.slice(0, begin, end).copy_(std::get<0>(to_all.kthvalue(k, 1)));
  });
  return radii;
}

}  // namespace

PrecisionRecall precision_recall(const at::Tensor& generated, const at::Tensor& reference,
                                 std::int64_t k, std::int64_t most) {
  if (generated.dim() != 2 || reference.dim() != 2 || generated.size(1) != reference.size(1) ||
      std::min({most, generated.size(0), reference.size(0)}) <= k) {
    throw data::InputError(fmt::format(
        "features [{}] and [{}]: precision and recall need more than {} samples in each set and "
        "equal dimensions",
        fmt::join(generated.sizes(), ", "), fmt::join(reference.sizes(), ", "), k));
  }
  const OneThreadEach math;
  const std::int64_t m = std::min({most, generated.size(0), reference.size(0)});
  // Points are centred near the origin, where |x|^2 - 2 x.y + |y|^2 loses less precision.
  const at::Tensor centre = reference.detach().mean(0, false, at::kDouble);
  const Points g = take(generated.detach(), m, Choice::manifold_generated, centre);
  const Points r = take(reference.detach(), m, Choice::manifold_reference, centre);
  if (!std::isfinite((g.squares.sum() + r.squares.sum()).item<double>())) {
    throw data::InputError("features: not all values are finite; check how the images were made");
  }
  const at::Tensor reach_g = radii(math, g, k), reach_r = radii(math, r, k);
  const std::int64_t blocks = (m + kRows - 1) / kRows;
  const at::Tensor real = at::empty({m}, at::kBool);             // on the reference manifold
  const at::Tensor covered = at::empty({blocks, m}, at::kBool);  // in a block's balls
  each_block(math, m, [&](std::int64_t begin, std::int64_t end) {
    const at::Tensor between = distances(g, begin, end, r);
    real.slice(0, begin, end).copy_((between <= reach_r).any(1));
    covered[begin / kRows].copy_((between <= reach_g.slice(0, begin, end).unsqueeze(1)).any(0));
  });
  return {real.sum().item<double>() / double(m), covered.any(0).sum().item<double>() / double(m)};
}

}  // namespace laterna::monitoring
