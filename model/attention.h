// Softmax-free attention on spikes and the neurons behind it (spec section 1): per head
// a = (D/A)^(-1/2) q (k^T v), then LIF with threshold 0.5.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>

#include "model/kernels/kernels.h"

namespace laterna::model {

inline constexpr double kAttentionThreshold = 0.5;

/// Spikes [T, B, M, D] from the spikes qkv [T, B, M, 3D] (q, k, v in that order; head i is the i-th
/// contiguous D/A of each). Products are exact sums of integers, scaled once.
at::Tensor spike_attention(const at::Tensor& qkv, std::int64_t heads, kernels::Surrogate surrogate);

/// The same in tensor operations: what the tests compare with, and the path of other devices.
at::Tensor spike_attention_reference(const at::Tensor& qkv, std::int64_t heads,
                                     kernels::Surrogate surrogate);

}  // namespace laterna::model
