// Finds replicas that drifted apart. What is replicated must hold the same bits on every rank; a
// bit flipped in memory or a sum formed in another order shows here, with the parameter's name.
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>
#include <span>
#include <string>
#include <vector>

#include "dist/communicator.h"

namespace laterna::dist {

struct Divergence {
  std::string name;  // the first parameter that differs
  std::vector<int>
      ranks;  // the ranks that do not hold what most hold (a tie: what the lowest holds)
};

/// Collective; the same answer on all ranks. `names` and `tensors` (any shape, dtype, device) run
/// in parallel, the same names on all ranks. Compares 64-bit hashes of the bytes, in one
/// all_gather. Throws std::invalid_argument when the two disagree in length.
std::optional<Divergence> find_divergence(Communicator& control, std::span<const std::string> names,
                                          std::span<const at::Tensor> tensors);

}  // namespace laterna::dist
