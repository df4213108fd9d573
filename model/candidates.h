// The N candidates of a layer (the paper's candidate substructures) and the weighted sum of the
// selected ones (eq 13). An assignment is one sample at one spiking step routed to one candidate,
// and only assignments are computed: at a step where a sample did not select a candidate, the
// candidate's neurons receive no current for this sample and leak.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <vector>

#include "model/kernels/cpu/kernels.h"
#include "model/parameters.h"
#include "model/probes/spike_probe.h"
#include "model/router.h"
#include "model/spiking/norm_lif.h"
#include "model/spiking/spike_linear.h"

namespace laterna::model {

/// The V assignments of a layer, numbered by candidate, then spiking step, then sample, so that the
/// assignments of each candidate are contiguous.
struct Assignments {
  at::Tensor source;  // int64 [V]: the token block (t * B + b) of z that an assignment reads
  at::Tensor table;   // int32 [blocks, N]: assignment of a token block to a candidate, or -1
  std::vector<std::int64_t> offsets;  // [N + 1] first assignment of each candidate
  Sequences sequences;                // one per (candidate, sample) with an assignment at some step

  /// Returns the assignments of a mask [T, B, N], uint8 on the CPU; `tokens` is M.
  static Assignments of(const at::Tensor& mask, std::int64_t tokens);
};

/// The assignments of samples whose token blocks arrive step by step. They are numbered separately
/// in each step and read the token blocks of their step; their rows follow those of the step
/// before.
struct StepAssignments {
  std::vector<Assignments> steps;  // [T], without sequences
  Sequences sequences;             // over the rows of all steps

  /// blocks: int64 [T, samples] on the CPU, the index of a sample's token block among those of the
  /// step, or -1 where there is none. mask: uint8 [token blocks of all steps, N], step after step.
  static StepAssignments of(const at::Tensor& blocks, const at::Tensor& mask, std::int64_t tokens);
  std::int64_t count() const;  // assignments of all steps
};

class Candidates {
 public:
  /// The candidates of `layer` that `parameters` holds: all or some of them.
  Candidates(const Parameters& parameters, const ModelConfig& config, std::int64_t layer,
             const Precision& precision);

  /// Returns the weighted sum over the selected candidates, [T*B, M * D]. z: spikes [T*B*M, D];
  /// routing: this layer's; without a mask where the layer does not select, so that its one
  /// candidate has weight 1; probe: called with the spikes, or empty. Throws c10::Error when a
  /// sample selected a candidate that is not held.
  at::Tensor forward(const Spikes& z, const LayerRouting& routing, const SpikeProbe& probe) const;

  /// up(), neurons() and down() are the stages of forward() for token blocks of any samples, which
  /// may arrive step by step; N counts the held candidates. up() returns the currents of the hidden
  /// layer, [V*M, 4D], of z [blocks * M, D], in `out` (see spike_linear).
  at::Tensor up(const Spikes& z, const Assignments& assignments, const at::Tensor& out = {}) const;
  /// Returns the spikes of the hidden layer, [V*M, 4D], from its currents over all steps.
  Spikes neurons(const at::Tensor& hidden, const Sequences& sequences) const;
  /// Returns the outputs for spikes [V*M, 4D] of these assignments, weighted by gate [blocks, N]
  /// and summed, [blocks, M * D].
  at::Tensor down(const Spikes& spikes, const at::Tensor& gate,
                  const Assignments& assignments) const;

  std::int64_t tokens() const { return tokens_; }
  const Precision& precision() const { return precision_; }
  std::int64_t hidden() const { return up_.biases[0].size(0); }
  /// Returns the parameters of the held candidates.
  std::vector<at::Tensor> parameters() const;
  /// Returns a copy of the candidates that uses `parameters`, in the order of parameters(),
  /// instead.
  Candidates with_parameters(at::TensorList parameters) const;

  /// Calls `probe`, unless it is empty, with the hidden layer's spikes [V*M, 4D].
  void show(const Spikes& spikes, const Assignments* assignments, const SpikeProbe& probe) const;

 private:
  std::vector<std::vector<at::Tensor>*> parameter_lists();
  /// Returns the columns of `routing` that belong to the held candidates.
  LayerRouting of_held(const LayerRouting& routing) const;
  LinearGroups grouped(const LinearGroups& weights, const Assignments& assignments) const;

  std::int64_t layer_, tokens_, steps_;
  std::vector<std::int64_t> held_;
  Precision precision_;
  NeuronOptions neuron_;
  LinearGroups up_, down_;
  Norms norms_;
};

/// Returns the token blocks of z [blocks * M, D] that the assignments read: [V * M, D], M =
/// `tokens`.
Spikes gather(const Spikes& z, const Assignments& assignments, std::int64_t tokens);

/// Returns sum_j h_j S_j for each token block, [blocks, M * D]: the outputs [V, M * D] of its
/// assignments, weighted by gate [blocks, N] and added in candidate order.
at::Tensor combine(const at::Tensor& outputs, const at::Tensor& gate,
                   const Assignments& assignments);
/// combine() in tensor operations: the reference of the tests, and the implementation for devices
/// other than the CPU.
at::Tensor combine_reference(const at::Tensor& outputs, const at::Tensor& gate,
                             const Assignments& assignments);

}  // namespace laterna::model
