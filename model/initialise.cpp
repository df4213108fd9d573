#include <ATen/ATen.h>
#include <fmt/format.h>

#include <cmath>
#include <stdexcept>

#include "data/philox.h"
#include "model/parameters.h"

namespace laterna::model {
namespace {

// What the specification leaves open; chosen on 7,000 steps of the quickstart. The norms before the
// neurons see positions beside pixels of unit variance: with positions of deviation 0.02 its loss
// ends at 0.0625, with 2 at 0.055.
constexpr double kPosition = 2;
// q, k and v have to fire before their products can: with 0 the attention's neurons stay at 1-2%,
// and digits whose parts do not fit together are more frequent at the same loss.
constexpr double kAttentionBias = 0.7;

bool ends_with(const std::string& name, const char* suffix) { return name.ends_with(suffix); }

/// Draws for the parameter that is number `index` of the model.
class Draws {
 public:
  Draws(std::uint64_t seed, std::uint32_t index) : seed_(seed), index_(index) {}

  at::Tensor normal(const at::Tensor& like) const {
    at::Tensor out = at::empty(like.sizes(), at::kDouble);
    data::fill_normal(out.data_ptr<double>(), out.numel(), seed_, data::Stream::initialisation, 0,
                      index_);
    return out;
  }
  /// Uniform in [-1, 1].
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

/// sin(t f_i) in the first half of the columns, cos(t f_i) in the rest, f_i = 10000^(-i/(D/2)).
at::Tensor sinusoids(std::int64_t steps, std::int64_t width) {
  const std::int64_t half = width / 2;
  const at::Tensor t = at::arange(steps, at::kDouble).unsqueeze(1);
  const at::Tensor f = at::pow(10000.0, -at::arange(half, at::kDouble) / double(half));
  return at::cat({at::sin(t * f), at::cos(t * f)}, 1);
}

at::Tensor aggregation(const std::string& start, std::int64_t n, const Draws& draws) {
  const at::Tensor ones = at::ones({n, n}, at::kDouble), eye = at::eye(n, at::kDouble);
  if (start == "one_minus_identity") return ones - eye;
  if (start == "additive_inverse") return eye - ones;
  if (start == "scaled") return 100 * (ones - eye);
  if (start == "inverse_scaled") return 100 * (eye - ones);
  if (start == "random_binary") return draws.uniform(ones).gt(0).to(at::kDouble);
  throw std::invalid_argument("no start of the aggregation matrix is called " + start);
}

/// Glorot's bound: sqrt(6 / (in + out)), a convolution's receptive field counted in.
double bound(const at::Tensor& weight) {
  const std::int64_t out = weight.size(0), in = weight.numel() / out;
  return std::sqrt(6.0 / double(in + out));
}

}  // namespace

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
    } else if (ends_with(name, "router.select.weight")) {
      p.copy_(router_deviation * draws.normal(p));
    } else if (ends_with(name, "lateral.gamma")) {
      p.fill_(config.gamma_start);
    } else if (ends_with(name, "lateral.aggregation")) {
      p.copy_(aggregation(config.aggregation_start, config.candidates, draws));
    } else if (ends_with(name, "lateral.threshold")) {
      p.fill_(0.5);
    } else if (ends_with(name, "norm_q.bias") || ends_with(name, "norm_k.bias") ||
               ends_with(name, "norm_v.bias")) {
      p.fill_(kAttentionBias);
    } else if (ends_with(name, "bias")) {
      p.zero_();
    } else if (p.dim() == 1) {  // a norm's weight
      p.fill_(1);
    } else {
      p.copy_(bound(p) * draws.uniform(p));
    }
  }
}

}  // namespace laterna::model
