// What ranks agree on before they go on: whether one of them failed, and whether they all read the
// same text. Both are collective, and give the same answer on every rank, so that ranks take the
// same branch, one of them prints one message, and all end with the same exit status.
#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "dist/communicator.h"

namespace laterna::dist {

/// Collective. Everybody's row of facts, `mine` [n] on the CPU: [size, n] there, whatever the
/// communicator moves.
at::Tensor gather_facts(Communicator& ranks, const at::Tensor& mine);

/// A failure on one rank: the exit status the program is to end with (not 0), and why.
struct Failure {
  int status = 1;
  std::string message;
};

/// The failure of the lowest rank that failed, as every rank learns it.
struct RankFailure {
  int rank = 0;
  int status = 1;
  std::string message;
  int ranks_failed = 1;  // how many ranks failed in all
};

/// Collective. `mine`: what went wrong on this rank, if anything. Nothing when all are well.
std::optional<RankFailure> agree_on_failure(Communicator& control,
                                            const std::optional<Failure>& mine);

/// Collective. The ranks whose `text` (a resolved configuration, say) is not rank 0's; empty when
/// all are equal. Compares 64-bit hashes and lengths.
std::vector<int> ranks_that_differ(Communicator& control, std::string_view text);

}  // namespace laterna::dist
