// One transformer block (spec section 1, "R blocks"): the time's shift, attention, selection. The
// residual stream moves on inside the fused norms, so a block hands its last branch on unadded.
#pragma once

#include <ATen/core/Tensor.h>

#include "model/candidates.h"
#include "model/lif.h"
#include "model/parameters.h"
#include "model/router.h"
#include "model/spike_probe.h"

namespace laterna::model {

/// The residual stream [T, B, M, D] is x + delta; delta is undefined before the first block.
struct Stream {
  at::Tensor x, delta;
};

class Block {
 public:
  Block(const Parameters& parameters, const ModelConfig& config, std::int64_t layer,
        const Precision& precision);

  /// activated: SiLU(e) [B, D]; routing: as Candidates::forward; probe: sees the spikes, or empty.
  Stream forward(const Stream& stream, const at::Tensor& activated, const LayerRouting* routing,
                 const SpikeProbe& probe) const;

 private:
  std::int64_t layer_, tokens_, heads_;
  Precision precision_;
  NeuronOptions neuron_;
  at::Tensor time_weight_, time_bias_;
  Norms attention_norm_, qkv_norm_, candidates_norm_;
  LinearGroups qkv_, project_;
  Candidates candidates_;
};

}  // namespace laterna::model
