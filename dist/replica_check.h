// Finds replicas that diverged. Replicated tensors must hold the same bits on every rank; a bit
// flipped in memory or a sum formed in another order is found here, with the parameter's name.
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>
#include <span>
#include <string>
#include <vector>

#include "dist/comm/communicator.h"

namespace laterna::dist {

struct Divergence {
  std::string name;        // the first parameter that differs
  std::vector<int> ranks;  // the ranks that do not hold its most common bits
};

/// Returns the first tensor that differs between ranks, or nullopt; the same answer on all ranks.
/// Among equally common bits those of the lowest rank count as the most common. Collective:
/// compares 64-bit hashes of the bytes in one all_gather. `names` and `tensors` (any shape, dtype,
/// device) are parallel arrays, with the same names on all ranks. Throws std::invalid_argument when
/// their lengths differ.
std::optional<Divergence> find_divergence(Communicator& control, std::span<const std::string> names,
                                          std::span<const at::Tensor> tensors);

}  // namespace laterna::dist
