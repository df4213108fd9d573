// Which rank of an expert-parallel group holds which candidate of which layer, for any number N of
// candidates and any number EP of ranks. There are S = min(N, EP) sides; rank e is on side e % S,
// and candidate j of layer r on side (j + r) % S, so that where N is not a multiple of S the
// heavier side turns with the layer. With EP > N the ranks of a side hold the same candidates:
// replicas. Hence a rank's candidates are held by the ranks of its side, of every group, and by
// nobody else.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

namespace laterna::dist {

class Placement {
 public:
  /// `candidates` N >= 1, `ranks` EP >= 1. Throws std::invalid_argument otherwise.
  Placement(std::int64_t candidates, std::int64_t ranks);

  std::int64_t candidates() const { return candidates_; }
  std::int64_t ranks() const { return ranks_; }
  std::int64_t sides() const { return sides_; }
  std::int64_t side_of(std::int64_t rank) const { return rank % sides_; }
  bool holds(std::int64_t rank, std::int64_t layer, std::int64_t candidate) const {
    return side_of(rank) == (candidate + layer) % sides_;
  }
  /// The candidates of `layer` on `rank`, and the ranks that hold a candidate; ascending.
  std::vector<std::int64_t> held(std::int64_t rank, std::int64_t layer) const;
  std::vector<std::int64_t> holders(std::int64_t layer, std::int64_t candidate) const;
  /// holders() of every candidate of `layer`: [N].
  std::vector<std::vector<std::int64_t>> all_holders(std::int64_t layer) const;

 private:
  std::int64_t candidates_, ranks_, sides_;
};

/// Where a sample finds a candidate, of the ranks that hold it: on its own rank, or on the one that
/// its number picks.
inline std::int64_t server_of(const std::vector<std::int64_t>& holders, std::int64_t owner,
                              std::int64_t sample) {
  if (std::find(holders.begin(), holders.end(), owner) != holders.end()) return owner;
  return holders[static_cast<std::size_t>(sample) % holders.size()];
}

}  // namespace laterna::dist
