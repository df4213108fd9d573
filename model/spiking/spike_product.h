// The two products that read spikes: spikes times a weight, and the gradient of the weight. Both
// add up rows for active inputs only, so that silent inputs cost nothing, and multiply densely
// where so many inputs fire that this is faster. Both ways add in the same order, so the choice,
// which depends on the density and on timings measured on this machine, changes no bit.
#pragma once

#include <ATen/core/Tensor.h>

#include "model/spiking/spikes.h"

namespace laterna::model {

/// The shares of active inputs above which dense multiplication is faster; a value above 1 means
/// never.
struct Crossover {
  double product, weight_gradient;
};
/// Measures the crossover for `dtype` and the instruction set in use, on one thread, in some
/// milliseconds.
Crossover measure_crossover(at::ScalarType dtype);
/// Returns the crossover for `dtype`, measured once in a process.
const Crossover& crossover(at::ScalarType dtype);

/// Computes out = start + spikes weight^T. spikes: [rows, in] in bits; weight: [out, in]; start:
/// [out] and out: [rows, out], contiguous.
void spike_product(const Spikes& spikes, const at::Tensor& weight, const at::Tensor& start,
                   at::Tensor& out, const Crossover& from);

/// Returns the weight's gradient, [out, in] = grad^T spikes. grad: [rows, out] contiguous.
at::Tensor spike_weight_gradient(const Spikes& spikes, const at::Tensor& grad,
                                 const Crossover& from);

}  // namespace laterna::model
