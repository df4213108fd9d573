// Permutations are computed on first use. A prefetching reader only moves forward, and a batch
// straddles at most the end of one epoch and the start of the next (unless it is larger than the
// set), so two permutations are kept.
#include "data/partition.h"

#include <algorithm>
#include <limits>
#include <numeric>
#include <stdexcept>
#include <utility>

#include "data/philox.h"

namespace laterna::data {

Partition::Partition(std::uint64_t seed, std::int64_t count) : seed_(seed), count_(count) {
  if (count < 1 || count > std::numeric_limits<std::uint32_t>::max()) {
    throw std::invalid_argument("a data set must have between 1 and 2^32 - 1 images");
  }
}

std::vector<std::uint32_t> Partition::permutation(std::uint64_t epoch) const {
  std::vector<std::uint32_t> order(static_cast<std::size_t>(count_));
  std::iota(order.begin(), order.end(), 0U);
  RandomSequence random(seed_, Stream::permutation, epoch, 0);
  for (std::size_t last = order.size() - 1; last > 0; --last) {
    std::swap(order[last], order[random.below(static_cast<std::uint32_t>(last + 1))]);
  }
  return order;
}

std::int64_t Partition::at(std::uint64_t position) {
  const auto n = static_cast<std::uint64_t>(count_);
  const std::uint64_t epoch = position / n;
  Epoch& kept = epochs_[epoch % 2];
  if (kept.order.empty() || kept.number != epoch) kept = {epoch, permutation(epoch)};
  return kept.order[position % n];
}

std::int64_t Partition::at(std::uint64_t step, std::int64_t batch, std::int64_t i) {
  return at(step * static_cast<std::uint64_t>(batch) + static_cast<std::uint64_t>(i));
}

Share share_of(std::int64_t batch, int rank, int ranks) {
  const std::int64_t each = batch / ranks, more = batch % ranks;
  return {rank * each + std::min<std::int64_t>(rank, more), each + (rank < more ? 1 : 0)};
}

}  // namespace laterna::data
