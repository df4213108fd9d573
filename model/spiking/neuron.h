// The leaky integrate-and-fire neuron in tensor operations (spec section 1; eqs 1-3): what runs on
// devices without fused kernels, and what the tests compare the fused kernels with. The kernels'
// neuron is in model/kernels/neuron.h.
#pragma once

#include <ATen/core/Tensor.h>

#include <string>
#include <vector>

#include "model/kernels/cpu/kernels.h"

namespace laterna::model {

struct NeuronOptions {
  double threshold = 1;
  kernels::Surrogate surrogate = kernels::Surrogate::kSigmoid;
};

/// Returns the names of the surrogates, the table of which is in neuron.cpp.
std::vector<std::string> surrogate_names();
/// Returns the surrogate of that name; throws std::invalid_argument for any other name.
kernels::Surrogate surrogate_from(const std::string& name);

/// Returns 1 where y >= 0, else 0, in the dtype of y; the gradient is the surrogate's.
at::Tensor spike(const at::Tensor& y, kernels::Surrogate surrogate);

/// Returns U, the membrane `v` after the input `current` of a step, elementwise.
at::Tensor charge(const at::Tensor& v, const at::Tensor& current);
/// Returns the spikes of potentials `u`, 0 and 1.
at::Tensor fire(const at::Tensor& u, const NeuronOptions& options);
/// Returns the membrane after the step; the spikes count as constants.
at::Tensor reset(const at::Tensor& u, const at::Tensor& spikes);

}  // namespace laterna::model
