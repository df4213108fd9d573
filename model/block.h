// One transformer block (spec section 1, "R blocks"): time shift, attention, selected candidates.
// Fused norms add to the residual stream, so a block returns the output of its last branch unadded,
// for the next block's norm to add.
#pragma once

#include <ATen/core/Tensor.h>

#include "model/candidates.h"
#include "model/expert_parallel.h"
#include "model/parameters.h"
#include "model/probes/spike_probe.h"
#include "model/router.h"
#include "model/spiking/norm_lif.h"

namespace laterna::model {

/// The residual stream [T, B, M, D] is x + delta; delta is undefined before the first block.
struct Stream {
  at::Tensor x, delta;
};

class Block {
 public:
  /// `group` is null, or a group of one rank, where this rank holds all candidates.
  Block(const Parameters& parameters, const ModelConfig& config, std::int64_t layer,
        const Precision& precision, const ExpertGroup* group);

  /// Returns the stream after this block. activated: SiLU(e) [B, D]; routing: this layer's, without
  /// a mask where it does not select; probe: called with the spikes, or empty.
  Stream forward(const Stream& stream, const at::Tensor& activated, const LayerRouting& routing,
                 const SpikeProbe& probe) const;

 private:
  std::int64_t layer_, tokens_, heads_;
  Precision precision_;
  NeuronOptions neuron_;
  at::Tensor time_weight_, time_bias_;
  Norms attention_norm_, qkv_norm_, candidates_norm_;
  LinearGroups qkv_, project_;
  Candidates candidates_;
  dist::Exchange* exchange_;
};

}  // namespace laterna::model
