// Softmax-free attention on spikes and the neurons behind it (spec section 1): per head
// a = (D/A)^(-1/2) q (k^T v), then LIF with threshold 0.5.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>

#include "model/kernels/kernels.h"
#include "model/spikes.h"

namespace laterna::model {

inline constexpr double kAttentionThreshold = 0.5;

/// Spikes [T*B*M, D] from the spikes qkv [T*B*M, 3D] in three groups (q, k, v in that order; head i
/// is the i-th contiguous D/A of each), of `steps` = T and `tokens` = M. Products are exact sums of
/// integers, scaled once.
Spikes spike_attention(const Spikes& qkv, std::int64_t steps, std::int64_t tokens,
                       std::int64_t heads, kernels::Surrogate surrogate);

/// The same in tensor operations, [T, B, M, 3D] -> [T, B, M, D]: what the tests compare with, and
/// the path of other devices.
at::Tensor spike_attention_reference(const at::Tensor& qkv, std::int64_t heads,
                                     kernels::Surrogate surrogate);

}  // namespace laterna::model
