#include "model/denoiser.h"

#include <ATen/ATen.h>

#include "model/probes/part.h"

namespace laterna::model {

// B batch, C channels, p patch size, h = w patches per side, M = h w tokens, D width, T spiking
// steps.

Denoiser::Denoiser(const ModelConfig& config, const Parameters& parameters,
                   const Precision& precision, const ExpertGroup* group)
    : config_(config),
      embed_weight_(parameters["embed.weight"]),
      embed_bias_(parameters["embed.bias"]),
      position_(parameters["position"]),
      time_(parameters["time.weight"]),
      norm_weight_(parameters["norm.weight"]),
      norm_bias_(parameters["norm.bias"]),
      head_weight_(parameters["head.weight"]),
      head_bias_(parameters["head.bias"]) {
  for (std::int64_t layer = 0; layer < config.depth; ++layer) {
    blocks_.emplace_back(parameters, config, layer, precision, group);
    if (config.selects(layer)) routers_.emplace_back(parameters, config, layer);
  }
}

at::Tensor Denoiser::activated_time(const at::Tensor& t) const {
  // SiLU is applied to the whole table first: its vector and scalar code round differently, so
  // applied to a batch, it would make an element's bits depend on its position in the batch, and a
  // sample's routing on the other samples.
  return at::silu(time_).index_select(0, t.to(time_.device()));  // [B, D]
}

Routing Denoiser::route(const at::Tensor& t) const {
  RECORD_USER_SCOPE(part::kRouting);
  const at::Tensor activated = activated_time(t);
  Routing routing;
  for (const auto& router : routers_) routing.push_back(router.route(activated));
  return routing;
}

at::Tensor Denoiser::forward(const at::Tensor& x, const at::Tensor& t, const Routing& routing,
                             const SpikeProbe& probe) const {
  const at::Tensor activated = activated_time(t);  // [B, D]
  const at::Tensor current = encode(x);            // [B, M, D]
  Stream stream{current.expand({config_.spiking_steps, -1, -1, -1}).contiguous(), at::Tensor()};
  const LayerRouting none;
  auto selecting = routing.begin();
  for (std::size_t layer = 0; layer < blocks_.size(); ++layer) {
    const bool selects = config_.selects(static_cast<std::int64_t>(layer));
    stream =
        blocks_[layer].forward(stream, activated, selects ? *selecting++ : none, probe);  // eq 7
  }
  return decode(stream.x + stream.delta);
}

at::Tensor Denoiser::encode(const at::Tensor& x) const {
  const auto p = config_.patch, side = config_.image_size / p, c = config_.channels;
  const at::Tensor patches = x.view({x.size(0), c, side, p, side, p})
                                 .permute({0, 2, 4, 1, 3, 5})
                                 .reshape({x.size(0), config_.tokens(), config_.patch_values()});
  const at::Tensor weight = embed_weight_.view({config_.width, -1});
  return at::linear(patches, weight, embed_bias_) + position_;  // eq 6: I of every spiking step
}

at::Tensor Denoiser::decode(const at::Tensor& stream) const {
  const auto p = config_.patch, side = config_.image_size / p, c = config_.channels;
  const at::Tensor normal =
      at::layer_norm(stream, {config_.width}, norm_weight_, norm_bias_, 1e-5);  // [T, B, M, D]
  // The head is linear, so that averaging its input over the spiking steps averages its output.
  const at::Tensor mean = normal.mean(0);                                // eq 8
  const at::Tensor values = at::linear(mean, head_weight_, head_bias_);  // [B, M, p*p*C]
  return values.view({stream.size(1), side, side, p, p, c})
      .permute({0, 5, 1, 3, 2, 4})
      .reshape({stream.size(1), c, config_.image_size, config_.image_size});
}

}  // namespace laterna::model
