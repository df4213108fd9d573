// One transformer block (spec section 1, "R blocks"): the time's shift, attention, selection. The
// residual stream moves on inside the fused norms, so a block hands its last branch on unadded.
#pragma once

#include <ATen/core/Tensor.h>

#include "model/candidates.h"
#include "model/expert_parallel.h"
#include "model/lif.h"
#include "model/parameters.h"
#include "model/router.h"
#include "model/spike_probe.h"

namespace laterna::model {

/// The residual stream [T, B, M, D] is x + delta; delta is undefined before the first block.
struct Stream {
  at::Tensor x, delta;
};

/// The assignments of a layer: null where it does not select. Plan and gates: this
/// rank's part where the candidates are spread over ranks, null where all are here.
struct Selection {
  const LayerRouting* routing = nullptr;
  const dist::LayerPlan* plan = nullptr;
  const at::Tensor* gates = nullptr;
};

class Block {
 public:
  /// group: null where all candidates are here.
  Block(const Parameters& parameters, const ModelConfig& config, std::int64_t layer,
        const Precision& precision, const ExpertGroup* group);

  /// activated: SiLU(e) [B, D]; probe: sees the spikes, or empty.
  Stream forward(const Stream& stream, const at::Tensor& activated, const Selection& selection,
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
