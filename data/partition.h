// Which image is sample i of step s: the global order, a function of seed and epoch alone. Samples
// are numbered through: position = step * batch + i. Position p lies in epoch p / n, and within it
// takes the entry p % n of that epoch's permutation (Fisher-Yates on Philox words keyed by seed and
// epoch). So a run resumed, or cut over another number of ranks, sees the same images in the same
// order, each exactly once an epoch; a batch may straddle two epochs.
#pragma once

#include <array>
#include <cstdint>
#include <vector>

namespace laterna::data {

/// Order of a data set of `count` images. Keeps the two permutations used last (4 bytes an image
/// each); not for use from several threads at once.
class Partition {
 public:
  /// `count` in 1..2^32-1, otherwise std::invalid_argument.
  Partition(std::uint64_t seed, std::int64_t count);
  /// The image at a position of the run, in 0..count-1.
  std::int64_t at(std::uint64_t position);
  /// The image that is sample `i` of step `step` (from 0) with global batches of `batch`.
  std::int64_t at(std::uint64_t step, std::int64_t batch, std::int64_t i);
  /// The order of one epoch: a permutation of 0..count-1.
  std::vector<std::uint32_t> permutation(std::uint64_t epoch) const;

 private:
  struct Epoch {
    std::uint64_t number;
    std::vector<std::uint32_t> order;  // empty: not made yet
  };

  std::uint64_t seed_;
  std::int64_t count_;
  std::array<Epoch, 2> epochs_;  // the epoch e is kept in e % 2
};

}  // namespace laterna::data
