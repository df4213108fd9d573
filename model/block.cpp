#include "model/block.h"

#include <ATen/ATen.h>
#include <fmt/format.h>

#include "model/attention.h"

namespace laterna::model {
namespace {

Norms norms_of(const Parameters& parameters, const std::string& block,
               const std::vector<std::string>& names) {
  Norms norms;
  norms.groups = static_cast<std::int64_t>(names.size());
  for (const auto& name : names) {
    norms.weights.push_back(parameters[block + name + ".weight"]);
    norms.biases.push_back(parameters[block + name + ".bias"]);
  }
  return norms;
}

LinearGroups linear_of(const Parameters& parameters, const std::string& name) {
  return {{parameters[name + ".weight"]}, {parameters[name + ".bias"]}, {}};
}

}  // namespace

Block::Block(const Parameters& parameters, const ModelConfig& config, std::int64_t layer,
             const Precision& precision, const ExpertGroup* group)
    : layer_(layer),
      tokens_(config.tokens()),
      heads_(config.heads),
      precision_(precision),
      candidates_(parameters, config, layer, precision),
      exchange_(group && group->placement.ranks() > 1 ? &group->exchange : nullptr) {
  const std::string block = fmt::format("blocks.{}.", layer);
  neuron_.surrogate = surrogate_from(config.surrogate);
  time_weight_ = parameters[block + "time.weight"];
  time_bias_ = parameters[block + "time.bias"];
  attention_norm_ = norms_of(parameters, block, {"attention.norm"});
  qkv_norm_ =
      norms_of(parameters, block, {"attention.norm_q", "attention.norm_k", "attention.norm_v"});
  candidates_norm_ = norms_of(parameters, block, {"candidates.norm"});
  qkv_ = linear_of(parameters, block + "attention.qkv");
  project_ = linear_of(parameters, block + "attention.project");
}

// T spiking steps, B batch, M tokens, D width.
Stream Block::forward(const Stream& stream, const at::Tensor& activated,
                      const LayerRouting& routing, const SpikeProbe& probe) const {
  const auto steps = stream.x.size(0), batch = stream.x.size(1);
  const auto sequences = Sequences::dense(steps, batch, tokens_);
  const auto show = [&](std::string_view site, const Spikes& spikes) {
    if (!probe || batch == 0) return;
    probe(layer_, site, spikes.values().view({steps * batch, tokens_, -1}), nullptr);
  };
  const at::Tensor shift = at::linear(activated, time_weight_, time_bias_);  // [B, D]

  const Residual read =
      residual_norm_lif(stream.x, stream.delta, shift, attention_norm_, sequences, neuron_);
  const at::Tensor currents = spike_linear(read.spikes, qkv_, precision_);  // [T*B*M, 3D]
  const Spikes qkv = norm_lif(currents, qkv_norm_, sequences, neuron_);     // [T*B*M, 3D]
  const Spikes attended =
      spike_attention(qkv, steps, tokens_, heads_, neuron_.surrogate);  // [T*B*M, D]
  show(spike_site::kInput, read.spikes);
  show(spike_site::kQkv, qkv);
  show(spike_site::kAttention, attended);
  const at::Tensor branch = spike_linear(attended, project_, precision_).view(read.sum.sizes());

  const Residual selected =
      residual_norm_lif(read.sum, branch, at::Tensor(), candidates_norm_, sequences, neuron_);
  const Spikes& z = selected.spikes;
  TORCH_CHECK(!routing.mask.defined() || (routing.plan != nullptr) == (exchange_ != nullptr),
              "layer ", layer_,
              ": a routing has a plan where candidates are distributed over ranks, "
              "and only there");
  if (routing.plan) show(spike_site::kZ, z);
  const at::Tensor sum = routing.plan ? forward_on_ranks(candidates_, z, routing, *exchange_, probe)
                                      : candidates_.forward(z, routing, probe);  // [T*B, M*D]
  return {selected.sum, sum.view(selected.sum.sizes())};
}

}  // namespace laterna::model
