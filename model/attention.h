// Softmax-free attention on spikes and the LIF neurons after it (spec section 1): per head
// a = (D/A)^(-1/2) q (k^T v), then LIF with threshold 0.5.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>

#include "model/kernels/cpu/kernels.h"
#include "model/spiking/spikes.h"

namespace laterna::model {

inline constexpr double kAttentionThreshold = 0.5;

/// Returns the spikes [T*B*M, D] of the attention's neurons; `steps` is T, `tokens` is M. qkv:
/// spikes [T*B*M, 3D] in three groups, q, k and v in that order; head i is the i-th contiguous D/A
/// columns of each. Products are exact sums of integers, scaled once.
Spikes spike_attention(const Spikes& qkv, std::int64_t steps, std::int64_t tokens,
                       std::int64_t heads, kernels::Surrogate surrogate);

/// spike_attention in tensor operations, [T, B, M, 3D] -> [T, B, M, D]: the reference of the tests,
/// and the implementation for devices other than the CPU.
at::Tensor spike_attention_reference(const at::Tensor& qkv, std::int64_t heads,
                                     kernels::Surrogate surrogate);

}  // namespace laterna::model
