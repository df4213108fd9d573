#include "dist/experts/placement.h"

#include <fmt/format.h>

#include <algorithm>
#include <stdexcept>

namespace laterna::dist {

Placement::Placement(std::int64_t candidates, std::int64_t ranks)
    : candidates_(candidates), ranks_(ranks), shards_(std::min(candidates, ranks)) {
  if (candidates < 1 || ranks < 1) {
    throw std::invalid_argument(fmt::format(
        "Placement: {} candidates on {} ranks: both must be at least 1", candidates, ranks));
  }
}

std::vector<std::int64_t> Placement::held(std::int64_t rank, std::int64_t layer) const {
  std::vector<std::int64_t> all;
  for (std::int64_t j = 0; j < candidates_; ++j) {
    if (holds(rank, layer, j)) all.push_back(j);
  }
  return all;
}

std::vector<std::int64_t> Placement::replicas(std::int64_t layer, std::int64_t candidate) const {
  std::vector<std::int64_t> all;
  for (std::int64_t rank = 0; rank < ranks_; ++rank) {
    if (holds(rank, layer, candidate)) all.push_back(rank);
  }
  return all;
}

std::vector<std::vector<std::int64_t>> Placement::all_replicas(std::int64_t layer) const {
  std::vector<std::vector<std::int64_t>> all;
  for (std::int64_t j = 0; j < candidates_; ++j) all.push_back(replicas(layer, j));
  return all;
}

}  // namespace laterna::dist
