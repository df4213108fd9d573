// The N candidate substructures of a layer and the weighted sum of the selected ones (eq 13). Only
// visits are computed: a visit is one sample at one spiking step in one candidate that it selected.
// A candidate's neurons at a step where its sample did not select it receive no current and leak.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <vector>

#include "model/kernels/kernels.h"
#include "model/lif.h"
#include "model/parameters.h"
#include "model/router.h"
#include "model/spike_linear.h"
#include "model/spike_probe.h"

namespace laterna::model {

/// Who visits whom, from a layer's mask [T, B, N]. Visits are numbered by candidate, then spiking
/// step, then sample, so that a candidate's are contiguous.
struct Visits {
  at::Tensor source;                 // int64 [V]: the block (t * B + b) of z that a visit reads
  at::Tensor table;                  // int32 [blocks, N]: visit of a block in a candidate, or -1
  std::vector<std::int64_t> starts;  // [N + 1] first visit of each candidate
  Sequences sequences;               // one for each (candidate, sample) that meets at some step

  /// Of samples whose blocks are all there.
  static Visits of(const at::Tensor& mask, std::int64_t tokens);
  /// Of samples whose step t lies in block blocks[t, sample] (int64 [T, samples] on the CPU; -1:
  /// not there, nobody is visited); mask: uint8 [blocks, N].
  static Visits among(const at::Tensor& blocks, const at::Tensor& mask, std::int64_t tokens);
};

class Candidates {
 public:
  /// `held`: which candidates `parameters` holds; the N of masks and gates below are those.
  Candidates(const Parameters& parameters, const ModelConfig& config, std::int64_t layer,
             const Precision& precision, const std::vector<std::int64_t>& held);

  /// z: spikes [T, B, M, D]; routing: this layer's, or null where the layer does not select and its
  /// one candidate has weight 1; probe: sees the spikes, or empty. Returns the sum over candidates
  /// [T, B, M, D].
  at::Tensor forward(const at::Tensor& z, const LayerRouting* routing,
                     const SpikeProbe& probe) const;

  /// The same on blocks of any samples: z [blocks, M * D], gate [blocks, N] -> [blocks, M * D].
  at::Tensor visit(const at::Tensor& z, const at::Tensor& gate, const Visits& visits,
                   const SpikeProbe& probe) const;

  std::int64_t tokens() const { return tokens_; }
  /// Their parameters, and the same candidates with other tensors in their place.
  std::vector<at::Tensor> parameters() const;
  Candidates with_parameters(at::TensorList parameters) const;

 private:
  std::vector<std::vector<at::Tensor>*> parameter_lists();
  at::Tensor perceptron(const at::Tensor& rows, const std::vector<std::int64_t>& starts,
                        const Sequences& sequences, const Visits* visits,
                        const SpikeProbe& probe) const;

  std::int64_t layer_, tokens_;
  Precision precision_;
  NeuronOptions neuron_;
  LinearGroups up_, down_;
  Norms norms_;
};

/// The blocks of z [blocks, M * D] that the visits read: [V, M * D].
at::Tensor gather(const at::Tensor& z, const Visits& visits);

/// sum_j h_j S_j at each step: outputs [V, M * D] weighted by gate [blocks, N] where selected,
/// added in candidate order; [blocks, M * D].
at::Tensor combine(const at::Tensor& outputs, const at::Tensor& gate, const Visits& visits);

}  // namespace laterna::model
