// How many threads a rank computes with: the cores that it may use (its binding, the container's
// CPU quota), divided among the ranks that share them.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "dist/world.h"

namespace laterna::launch {

/// What a rank of a host may use.
struct RankCores {
  std::vector<bool> allowed;  // by core of the host
  double quota = 0;           // cores' worth of time that its container may use; 0: no limit
  std::int64_t threads = 0;   // asked for; 0: threads_of() decides
};

/// Returns the threads of rank `me` of a host's `ranks`: its cores, shared with those ranks that
/// may use the same ones, within the quota, at least 1.
std::int64_t threads_of(const std::vector<RankCores>& ranks, std::size_t me);

/// Returns a warning when the ranks of a host have more threads than cores, or may use less than
/// half of the `offered` cores because mpirun bound them; otherwise an empty text.
std::string trouble_with(const std::vector<RankCores>& ranks, std::int64_t offered);

/// Collective. Sets the threads of this rank: `wanted`, or OMP_NUM_THREADS if that is 0, or what
/// threads_of() returns. Returns what trouble_with() says of rank 0's host.
std::string share_cores(dist::World& world, std::int64_t wanted = 0);

}  // namespace laterna::launch
