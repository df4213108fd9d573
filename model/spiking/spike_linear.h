// Linear layers that read spikes, in groups: each group is a range of consecutive rows with its own
// weights, as the candidates need; a plain layer is one group. All products of spikes with dense
// weights are here: forward, the gradient of the input and the gradient of the weight.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <vector>

#include "model/model_config.h"
#include "model/spiking/spikes.h"

namespace laterna::model {

struct LinearGroups {
  std::vector<at::Tensor> weights;    // [out, in] each
  std::vector<at::Tensor> biases;     // [out] each
  std::vector<std::int64_t> offsets;  // row offsets [groups + 1]; empty: one group of all rows
};

/// Returns [rows, out] from spikes [rows, in]: rows offsets[g] .. offsets[g+1] - 1 are multiplied
/// by weights[g]. A group without rows has zero gradients, not undefined ones. With
/// bfloat16_products weights and incoming gradients are rounded to bfloat16 before they are
/// multiplied; sums and results keep the tensors' dtype. `out`: destination of the result,
/// [rows, out] contiguous, not a view that autograd tracks; undefined: new memory.
at::Tensor spike_linear(const Spikes& spikes, const LinearGroups& groups,
                        const Precision& precision, const at::Tensor& out = {});

}  // namespace laterna::model
