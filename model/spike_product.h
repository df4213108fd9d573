// The two products that read spikes: with a weight, and the weight's gradient. Both add what
// belongs to active inputs, so that silence costs nothing, and multiply densely where so many fire
// that this is faster. Both ways add in the same order: the choice, by density and by what was
// measured on this machine, changes no bit.
#pragma once

#include <ATen/core/Tensor.h>

#include "model/spikes.h"

namespace laterna::model {

/// Shares of active inputs from which a dense multiplication is faster; above 1: never. Measured
/// once in a process, on one thread, in some milliseconds.
struct Crossover {
  double product, weight_gradient;
};
const Crossover& crossover(at::ScalarType dtype);

/// out = start + spikes weight^T. spikes [rows, in] in bits, weight [out, in], start [out], out
/// [rows, out], contiguous.
void spike_product(const Spikes& spikes, const at::Tensor& weight, const at::Tensor& start,
                   at::Tensor& out, const Crossover& from);

/// The weight's gradient [out, in] = grad^T spikes. grad [rows, out] contiguous.
at::Tensor spike_weight_gradient(const Spikes& spikes, const at::Tensor& grad,
                                 const Crossover& from);

}  // namespace laterna::model
