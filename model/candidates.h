// The N candidate substructures of a layer and the weighted sum of the selected ones (eq 13). Only
// assignments are computed: an assignment is one sample at one spiking step routed to one
// candidate. A candidate's neurons at a step where its sample did not select it receive no current
// and leak.
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

/// The assignments of a layer, from its mask [T, B, N], are numbered by candidate, then spiking
/// step, then sample, so that a candidate's are contiguous.
struct Assignments {
  at::Tensor source;  // int64 [V]: the block (t * B + b) of z that an assignment reads
  at::Tensor table;   // int32 [blocks, N]: assignment of a block in a candidate, or -1
  std::vector<std::int64_t> offsets;  // [N + 1] first assignment of each candidate
  Sequences sequences;                // one for each (candidate, sample) that meets at some step

  static Assignments of(const at::Tensor& mask, std::int64_t tokens);
};

/// The same of samples whose blocks come step by step. Each step's assignments are numbered for
/// themselves and read the blocks of their step; their rows lie behind those of the step before.
struct StepAssignments {
  std::vector<Assignments> steps;  // [T], without sequences
  Sequences sequences;             // over the rows of all steps

  /// blocks: int64 [T, samples] on the CPU, the place of a sample's block among its step's; -1: not
  /// there. mask: uint8 [blocks of all steps, N], step after step.
  static StepAssignments of(const at::Tensor& blocks, const at::Tensor& mask, std::int64_t tokens);
  std::int64_t count() const;  // assignments in all
};

class Candidates {
 public:
  /// Those that `parameters` holds, all of the layer or some.
  Candidates(const Parameters& parameters, const ModelConfig& config, std::int64_t layer,
             const Precision& precision);

  /// z: spikes [T*B*M, D]; routing: this layer's, or null where the layer does not select and its
  /// one candidate has weight 1; probe: sees the spikes, or empty. Returns the sum over candidates
  /// [T*B, M * D]. Throws c10::Error when a sample selected a candidate that is not held.
  at::Tensor forward(const Spikes& z, const LayerRouting* routing, const SpikeProbe& probe) const;

  /// The same in three parts, where N means the held candidates, for blocks [blocks * M, D] of any
  /// samples, which may come step by step. up: the currents of the hidden layer, [V*M, 4D], in
  /// `out` (as spike_linear takes it); neurons: their spikes, over all steps; down: spikes of these
  /// assignments [V*M, 4D], weighted by gate [blocks, N] -> [blocks, M * D].
  at::Tensor up(const Spikes& z, const Assignments& assignments, const at::Tensor& out = {}) const;
  Spikes neurons(const at::Tensor& hidden, const Sequences& sequences) const;
  at::Tensor down(const Spikes& spikes, const at::Tensor& gate,
                  const Assignments& assignments) const;

  std::int64_t tokens() const { return tokens_; }
  std::int64_t hidden() const { return up_.biases[0].size(0); }
  /// Their parameters, and the same candidates with other tensors in their place.
  std::vector<at::Tensor> parameters() const;
  Candidates with_parameters(at::TensorList parameters) const;

  /// Shows the hidden layer's spikes [V*M, 4D] to `probe`, where there is one.
  void show(const Spikes& spikes, const Assignments* assignments, const SpikeProbe& probe) const;

 private:
  std::vector<std::vector<at::Tensor>*> parameter_lists();
  /// The columns of the held candidates.
  LayerRouting of_held(const LayerRouting& routing) const;
  LinearGroups grouped(const LinearGroups& weights, const Assignments& assignments) const;

  std::int64_t layer_, tokens_, steps_;
  std::vector<std::int64_t> held_;
  Precision precision_;
  NeuronOptions neuron_;
  LinearGroups up_, down_;
  Norms norms_;
};

/// The blocks of z [blocks * M, D] that the assignments read: [V * M, D]; M is `tokens`.
Spikes gather(const Spikes& z, const Assignments& assignments, std::int64_t tokens);

/// sum_j h_j S_j at each step: outputs [V, M * D] weighted by gate [blocks, N] where selected,
/// added in candidate order; [blocks, M * D].
at::Tensor combine(const at::Tensor& outputs, const at::Tensor& gate,
                   const Assignments& assignments);
/// The same in tensor operations: what the tests compare with, and the path of other devices.
at::Tensor combine_reference(const at::Tensor& outputs, const at::Tensor& gate,
                             const Assignments& assignments);

}  // namespace laterna::model
