// Names of the parts of a training step, for profiling. The code of a part opens
// RECORD_USER_SCOPE(part::kX), which LibTorch reports to its observers (at::addGlobalCallback) and
// which costs next to nothing when there are none. Parts do not nest.
#pragma once

#include <ATen/record_function.h>

namespace laterna::model::part {

inline constexpr const char* kProduct = "products of spikes";
inline constexpr const char* kWeightGradient = "gradients of weights";
inline constexpr const char* kSpikeGradient = "gradients of spikes";  // dense arithmetic
inline constexpr const char* kNeurons = "norms and neurons";
inline constexpr const char* kNeuronsBackward = "norms and neurons, backward";
inline constexpr const char* kAttention = "attention";
inline constexpr const char* kAttentionBackward = "attention, backward";
inline constexpr const char* kAssignments = "assignments: gather and sum";  // forward and backward
inline constexpr const char* kRouting = "routing";
inline constexpr const char* kOptimiser = "optimiser";

}  // namespace laterna::model::part
