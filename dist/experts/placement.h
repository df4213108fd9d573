// Which rank of an expert-parallel group holds which candidates of each layer, for any number N of
// candidates and any number EP of ranks. The candidates form S = min(N, EP) shards: candidate j of
// layer r belongs to shard (j + r) % S, so that where N is not a multiple of S the larger shard
// differs from layer to layer. Rank e of a group holds shard e % S; with EP > N several ranks of a
// group hold the same shard. All ranks of the world that hold the same shard are its replica group.
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
  std::int64_t shards() const { return shards_; }
  std::int64_t shard_of(std::int64_t rank) const { return rank % shards_; }
  bool holds(std::int64_t rank, std::int64_t layer, std::int64_t candidate) const {
    return shard_of(rank) == (candidate + layer) % shards_;
  }
  /// Returns the candidates of `layer` that `rank` holds, ascending.
  std::vector<std::int64_t> held(std::int64_t rank, std::int64_t layer) const;
  /// Returns the ranks of a group that hold `candidate` of `layer`, ascending.
  std::vector<std::int64_t> replicas(std::int64_t layer, std::int64_t candidate) const;
  /// Returns replicas() of every candidate of `layer`: [N].
  std::vector<std::vector<std::int64_t>> all_replicas(std::int64_t layer) const;

 private:
  std::int64_t candidates_, ranks_, shards_;
};

/// Returns the rank among a candidate's `replicas` that computes the candidate for a sample of rank
/// `owner`: the owner where it holds the candidate, otherwise a replica picked by the sample's
/// number.
inline std::int64_t server_of(const std::vector<std::int64_t>& replicas, std::int64_t owner,
                              std::int64_t sample) {
  if (std::find(replicas.begin(), replicas.end(), owner) != replicas.end()) return owner;
  return replicas[static_cast<std::size_t>(sample) % replicas.size()];
}

}  // namespace laterna::dist
