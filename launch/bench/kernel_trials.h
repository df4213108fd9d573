// The kernels of the table: how the inputs of each are made, how it is called, and its reference.
// The spikes' kernels are in spike_trials.cpp, the others in kernel_trials.cpp.
#pragma once

#include <ATen/core/Tensor.h>

#include <functional>
#include <vector>

#include "launch/bench/kernel_table.h"

namespace laterna::launch {

KernelTrial norm_lif_forward(const KernelShape& s, at::ScalarType dtype);
KernelTrial norm_lif_backward(const KernelShape& s, at::ScalarType dtype);
KernelTrial attention_forward(const KernelShape& s, at::ScalarType dtype);
KernelTrial attention_backward(const KernelShape& s, at::ScalarType dtype);
KernelTrial product(const KernelShape& s, at::ScalarType dtype);
KernelTrial weight_gradient(const KernelShape& s, at::ScalarType dtype);
KernelTrial pack(const KernelShape& s, at::ScalarType dtype);
KernelTrial unpack(const KernelShape& s, at::ScalarType dtype);
KernelTrial gather_backward(const KernelShape& s, at::ScalarType dtype);
KernelTrial combine_forward(const KernelShape& s, at::ScalarType dtype);
KernelTrial combine_backward(const KernelShape& s, at::ScalarType dtype);
KernelTrial routing_forward(const KernelShape& s, at::ScalarType dtype);
KernelTrial routing_backward(const KernelShape& s, at::ScalarType dtype);
KernelTrial adamw(const KernelShape& s, at::ScalarType dtype);
KernelTrial sum_of_squares(const KernelShape& s, at::ScalarType dtype);

using Tensors = std::vector<at::Tensor>;
using Outputs = std::vector<model::Spikes>;  // dense tensors are spikes without bits

/// A differentiable operation of the model, and the same in tensor operations. The proxies of the
/// inputs hold their values.
struct Operation {
  Outputs inputs;
  std::function<Outputs(const Outputs&)> fused;
  std::function<Tensors(const Tensors&)> plain;
};

KernelTrial forward(const Operation& operation);
/// Computes the gradients of the inputs, for random ones of the outputs.
KernelTrial backward(const Operation& operation);

Tensors proxies(const Outputs& all);
Outputs dense(const Tensors& tensors);

/// Returns random multiples of 1/64 below 2, whose products, and sums of up to a thousand of them,
/// are exact in float32 in any order.
at::Tensor exact(at::IntArrayRef shape, at::ScalarType dtype);
/// Returns random spikes in `groups` parts of a row.
model::Spikes random_spikes(std::int64_t rows, std::int64_t width, double density,
                            at::ScalarType dtype, std::int64_t groups = 1);
/// Returns a tolerance for sums of some hundred rounded terms.
inline double rounding(at::ScalarType dtype) { return dtype == at::kDouble ? 1e-12 : 1e-4; }

}  // namespace laterna::launch
