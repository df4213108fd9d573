// LayerNorm and leaky integrate-and-fire neurons over the T spiking steps, as one autograd function
// with a hand-written backward (spec section 1, "LIF neuron"; eqs 1-3): tau is 2, V_reset is 0, and
// membranes start at rest in every call. norm_lif_reference does the same in a loop of tensor
// operations; the tests compare with it, and it runs on devices without fused kernels.
#pragma once

#include <ATen/core/Tensor.h>

#include <vector>

#include "model/spiking/neuron.h"
#include "model/spiking/sequences.h"
#include "model/spiking/spikes.h"

namespace laterna::model {

/// LayerNorm weights and biases, [D] each. Those of group g of a row under parameter group p are at
/// index p * groups + g.
struct Norms {
  std::vector<at::Tensor> weights, biases;
  std::int64_t groups = 1;
};

/// Returns the spikes [blocks * M, groups * D] of LIF(LN(x)).
///   x: [blocks, M, groups * D] in any contiguous view, float32 or float64; each group of a row is
///   normalised separately.
Spikes norm_lif(const at::Tensor& x, const Norms& norms, const Sequences& sequences,
                const NeuronOptions& options);
/// Returns the spikes of norm_lif as values, in the shape and dtype of x.
at::Tensor norm_lif_reference(const at::Tensor& x, const Norms& norms, const Sequences& sequences,
                              const NeuronOptions& options);

struct Residual {
  at::Tensor sum;  // [T, B, M, D] the residual stream
  Spikes spikes;   // [T * B * M, D] LIF(LN(sum))
};

/// Adds to the residual stream and reads it in one pass: sum = x + delta + shift, spikes =
/// LIF(LN(sum)).
///   x, delta: [T, B, M, D]; shift: [B, D], the same for every token and step. delta or shift may
///   be undefined, not both.
Residual residual_norm_lif(const at::Tensor& x, const at::Tensor& delta, const at::Tensor& shift,
                           const Norms& norms, const Sequences& sequences,
                           const NeuronOptions& options);

}  // namespace laterna::model
