// LayerNorm and leaky integrate-and-fire neurons over the T spiking steps, as one autograd function
// with a hand-written backward (spec section 1, "LIF neuron"; eqs 1-3): tau 2, V_reset 0, the
// membrane starting at rest in every call. norm_lif_reference is the same as a loop of tensor
// operations: what the tests compare with, and what runs on a device without fused kernels.
#pragma once

#include <ATen/core/Tensor.h>

#include <string>
#include <vector>

#include "model/kernels/kernels.h"
#include "model/sequences.h"
#include "model/spikes.h"

namespace laterna::model {

struct NeuronOptions {
  double threshold = 1;
  kernels::Surrogate surrogate = kernels::Surrogate::kSigmoid;
};

/// "sigmoid" or "arctangent"; throws std::invalid_argument otherwise.
kernels::Surrogate surrogate_from(const std::string& name);

/// Norm parameters of [parameter_groups, groups]: weights and biases of [D] each, group by group.
struct Norms {
  std::vector<at::Tensor> weights, biases;
  std::int64_t groups = 1;
};

/// Spikes [blocks * M, groups * D] of LIF(LN(x)).
///   x: [blocks, M, groups * D] in any contiguous view, float32 or float64; each group of a row is
///   normalised by itself.
Spikes norm_lif(const at::Tensor& x, const Norms& norms, const Sequences& sequences,
                const NeuronOptions& options);
/// The same as values, in x's shape and dtype.
at::Tensor norm_lif_reference(const at::Tensor& x, const Norms& norms, const Sequences& sequences,
                              const NeuronOptions& options);

struct Residual {
  at::Tensor sum;  // [T, B, M, D] the residual stream
  Spikes spikes;   // [T * B * M, D] LIF(LN(sum))
};

/// The residual stream moved on and read in one pass: sum = x + delta + shift, spikes =
/// LIF(LN(sum)).
///   x, delta: [T, B, M, D]; shift: [B, D], the same for every token and step. delta or shift may
///   be undefined, not both.
Residual residual_norm_lif(const at::Tensor& x, const at::Tensor& delta, const at::Tensor& shift,
                           const Norms& norms, const Sequences& sequences,
                           const NeuronOptions& options);

/// A spike where y >= 0, with the surrogate's derivative: the plain neuron of the references.
at::Tensor spike(const at::Tensor& y, kernels::Surrogate surrogate);

}  // namespace laterna::model
