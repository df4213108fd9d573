// The global order: which of the n images of a data set is sample i of a step. Samples are numbered
// through the run: position = step * batch + i. Position p lies in epoch p / n and takes entry
// p % n of that epoch's permutation, a function of seed and epoch only (Fisher-Yates on Philox
// words keyed by both). So a resumed run, or one on another number of ranks, sees the same images
// in the same order, each exactly once per epoch; a batch may straddle two epochs.
#pragma once

#include <array>
#include <cstdint>
#include <vector>

namespace laterna::data {

/// The order of a data set of `count` images. Keeps the two permutations used last (4 bytes per
/// image each). Not safe for use from several threads at once.
class Partition {
 public:
  /// Throws std::invalid_argument unless `count` is in 1..2^32-1.
  Partition(std::uint64_t seed, std::int64_t count);
  /// Returns the image at a position of the run, in 0..count-1.
  std::int64_t at(std::uint64_t position);
  /// Returns the image that is sample `i` of step `step` (from 0), given global batches of `batch`
  /// samples.
  std::int64_t at(std::uint64_t step, std::int64_t batch, std::int64_t i);
  /// Returns the order of one epoch: a permutation of 0..count-1.
  std::vector<std::uint32_t> permutation(std::uint64_t epoch) const;

 private:
  struct Epoch {
    std::uint64_t number;
    std::vector<std::uint32_t> order;  // empty: not computed yet
  };

  std::uint64_t seed_;
  std::int64_t count_;
  std::array<Epoch, 2> epochs_;  // epoch e is kept at index e % 2
};

/// A rank's share of the global batch: samples first .. first+count-1. Shares differ by at most one
/// sample, lower ranks having the larger ones; with more ranks than samples some are empty.
struct Share {
  std::int64_t first, count;
};
Share share_of(std::int64_t batch, int rank, int ranks);

}  // namespace laterna::data
