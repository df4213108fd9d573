// Names of the parts of a training step, for profiling. The code of a part opens
// RECORD_USER_SCOPE(part::kX), which LibTorch reports to its observers (at::addGlobalCallback) and
// which costs next to nothing when there are none. Parts do not nest.
#pragma once

#include <ATen/record_function.h>

namespace laterna::model::part {

inline constexpr const char* kProduct = "products";  // of spikes with weights
inline constexpr const char* kWeightGradient = "weight_gradients";
inline constexpr const char* kSpikeGradient = "spike_gradients";  // dense products
inline constexpr const char* kNeurons = "neurons";                // with the norm before them
inline constexpr const char* kNeuronsBackward = "neurons_backward";
inline constexpr const char* kAttention = "attention";
inline constexpr const char* kAttentionBackward = "attention_backward";
inline constexpr const char* kAssignments =
    "assignments";  // gather and weighted sum, forward and backward
inline constexpr const char* kRouting = "routing";
inline constexpr const char* kOptimiser = "optimiser";

}  // namespace laterna::model::part
