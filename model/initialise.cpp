#include "model/initialise.h"

#include <ATen/ATen.h>
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <cmath>
#include <stdexcept>

#include "data/philox.h"

namespace laterna::model {
namespace {

// Start values that the specification leaves open, chosen by runs of 7,000 steps of the quickstart.
// The norms before the neurons see the sum of positions and pixels of unit variance: with positions
// of deviation 0.02 the loss ends at 0.0625, with 2 at 0.055.
constexpr double kPosition = 2;
// q, k and v must fire for their products to be non-zero: with bias 0 the attention's neurons fire
// at only 1-2%, and digits whose parts do not fit together are more frequent at the same loss.
constexpr double kAttentionBias = 0.7;

/// Draws random numbers for the parameter whose ParameterSpec::number is `index`.
class Draws {
 public:
  Draws(std::uint64_t seed, std::uint32_t index) : seed_(seed), index_(index) {}

  /// Returns standard normal float64 numbers in the shape of `like`.
  at::Tensor normal(const at::Tensor& like) const {
    at::Tensor out = at::empty(like.sizes(), at::kDouble);
    data::fill_normal(out.data_ptr<double>(), out.numel(), seed_, data::Stream::initialisation, 0,
                      index_);
    return out;
  }
  /// Returns float64 numbers uniform in [-1, 1], in the shape of `like`.
  at::Tensor uniform(const at::Tensor& like) const {
    at::Tensor out = at::empty(like.sizes(), at::kDouble);
    data::fill_uniform(out.data_ptr<double>(), out.numel(), seed_, data::Stream::initialisation, 0,
                       index_);
    return out * 2 - 1;
  }

 private:
  std::uint64_t seed_;
  std::uint32_t index_;
};

/// Returns [steps, width]: sin(t f_i) in the first half of the columns, cos(t f_i) in the second,
/// f_i = 10000^(-i/(D/2)).
at::Tensor sinusoids(std::int64_t steps, std::int64_t width) {
  const std::int64_t half = width / 2;
  const at::Tensor t = at::arange(steps, at::kDouble).unsqueeze(1);
  const at::Tensor f = at::pow(10000.0, -at::arange(half, at::kDouble) / double(half));
  return at::cat({at::sin(t * f), at::cos(t * f)}, 1);
}

/// A start value of Lambda, [N, N], from the matrices of ones and the identity.
struct AggregationStart {
  const char* name;
  at::Tensor (*make)(const at::Tensor& ones, const at::Tensor& identity, const Draws& draws);
};
using Matrix = const at::Tensor&;
const AggregationStart kAggregationStarts[] = {
    {"one_minus_identity", [](Matrix ones, Matrix i, const Draws&) { return ones - i; }},
    {"additive_inverse", [](Matrix ones, Matrix i, const Draws&) { return i - ones; }},
    {"scaled", [](Matrix ones, Matrix i, const Draws&) { return 100 * (ones - i); }},
    {"inverse_scaled", [](Matrix ones, Matrix i, const Draws&) { return 100 * (i - ones); }},
    {"random_binary", [](Matrix ones, Matrix,
                         const Draws& draws) { return draws.uniform(ones).gt(0).to(at::kDouble); }},
};

at::Tensor aggregation(const std::string& start, std::int64_t n, const Draws& draws) {
  const at::Tensor ones = at::ones({n, n}, at::kDouble), identity = at::eye(n, at::kDouble);
  for (const auto& known : kAggregationStarts) {
    if (known.name == start) return known.make(ones, identity, draws);
  }
  throw std::invalid_argument(fmt::format("unknown aggregation_start {}; allowed: {}", start,
                                          fmt::join(aggregation_starts(), ", ")));
}

/// Returns Glorot's bound sqrt(6 / (in + out)); `in` includes the receptive field of a convolution.
double bound(const at::Tensor& weight) {
  const std::int64_t out = weight.size(0), in = weight.numel() / out;
  return std::sqrt(6.0 / double(in + out));
}

}  // namespace

std::vector<std::string> aggregation_starts() {
  std::vector<std::string> names;
  for (const auto& known : kAggregationStarts) names.emplace_back(known.name);
  return names;
}

void initialise(const Parameters& parameters, const ModelConfig& config, std::uint64_t seed) {
  const at::NoGradGuard no_grad;
  const at::Tensor time = sinusoids(config.diffusion_steps, config.width);
  const double router_deviation =
      1 / std::sqrt(at::silu(time).square().sum(1).mean().item<double>());
  for (std::size_t i = 0; i < parameters.specs().size(); ++i) {
    const auto& spec = parameters.specs()[i];
    const std::string& name = spec.name;
    const at::Tensor& p = parameters.views()[i];
    const Draws draws(seed, static_cast<std::uint32_t>(spec.number));
    if (name == "time.weight") {
      p.copy_(time);
    } else if (name == "position") {
      p.copy_(kPosition * draws.normal(p));
    } else if (name == "embed.weight") {
      p.copy_(std::sqrt(3.0 / double(config.patch_values())) * draws.uniform(p));
    } else if (name == "head.weight") {
      p.zero_();
    } else if (name.ends_with("router.select.weight")) {
      p.copy_(router_deviation * draws.normal(p));
    } else if (name.ends_with("lateral.gamma")) {
      p.fill_(config.gamma_start);
    } else if (name.ends_with("lateral.aggregation")) {
      p.copy_(aggregation(config.aggregation_start, config.candidates, draws));
    } else if (name.ends_with("lateral.threshold")) {
      p.fill_(0.5);
    } else if (name.ends_with("norm_q.bias") || name.ends_with("norm_k.bias") ||
               name.ends_with("norm_v.bias")) {
      p.fill_(kAttentionBias);
    } else if (name.ends_with("bias")) {
      p.zero_();
    } else if (p.dim() == 1) {  // a norm's weight
      p.fill_(1);
    } else {
      p.copy_(bound(p) * draws.uniform(p));
    }
  }
}

}  // namespace laterna::model
