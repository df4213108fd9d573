// Matrix products that read spikes, grouped: consecutive runs of rows each with weights of their
// own, as the candidates need; a plain layer is one group. The one place where spikes meet dense
// weights, forward, for the input's gradient and for the weight's.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <vector>

#include "model/model_config.h"
#include "model/spikes.h"

namespace laterna::model {

struct LinearGroups {
  std::vector<at::Tensor> weights;    // [out, in] each
  std::vector<at::Tensor> biases;     // [out] each
  std::vector<std::int64_t> offsets;  // row offsets [groups + 1]; empty: one group of all rows
};

/// spikes [rows, in] -> [rows, out], rows offsets[g] .. offsets[g+1] by weights[g]. A group without
/// rows has zero gradients, not none. With bfloat16_products weights and incoming gradients are
/// rounded to bfloat16 before they are multiplied; sums and results stay in the tensors' own dtype.
/// `out`: where the result goes, [rows, out] contiguous, no view that autograd knows of; undefined:
/// new memory.
at::Tensor spike_linear(const Spikes& spikes, const LinearGroups& groups,
                        const Precision& precision, const at::Tensor& out = {});

}  // namespace laterna::model
