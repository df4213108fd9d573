// What ranks agree on before they continue: whether one of them failed, and whether all read the
// same text. Both checks are collective and give the same answer on every rank, so that ranks take
// the same branch, one of them prints one message, and all end with the same exit status.
#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "dist/comm/communicator.h"

namespace laterna::dist {

/// Returns the rows of facts of all ranks, [size, n] on the CPU, also where the communicator moves
/// GPU tensors. `mine` [n] on the CPU: this rank's row. Collective.
at::Tensor gather_facts(Communicator& ranks, const at::Tensor& mine);

/// A failure on one rank: the exit status that the program is to end with (not 0), and the reason.
struct Failure {
  int status = 1;
  std::string message;
};

/// The failure of the lowest rank that failed, as reported to every rank.
struct RankFailure {
  int rank = 0;
  int status = 1;
  std::string message;
  int ranks_failed = 1;  // number of ranks that failed
};

/// Returns the failure of the lowest rank that failed, or nullopt when no rank failed. `mine`: this
/// rank's failure, if any. Collective.
std::optional<RankFailure> agree_on_failure(Communicator& control,
                                            const std::optional<Failure>& mine);

/// Returns the ranks whose `text` (a resolved configuration, say) differs from rank 0's; empty when
/// all are equal. Compares 64-bit hashes and lengths. Collective.
std::vector<int> ranks_that_differ(Communicator& control, std::string_view text);

}  // namespace laterna::dist
