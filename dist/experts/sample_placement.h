// Which rank of an expert-parallel group takes which sample of the group's batch. Every rank can
// read every image and draw every sample's noise, so the choice is free and does not change the
// mathematics: a sample goes to a rank that holds its candidates when that shortens the step.
// Minimising the token blocks that are transferred would not be enough: it may leave one rank with
// most of the assignments, and all ranks wait for the slowest.
#pragma once

#include <cstdint>
#include <vector>

#include "dist/experts/placement.h"
#include "dist/experts/step_plan.h"

namespace laterna::dist {

/// The parts of a step's time, in any common unit. The defaults: between two ranks of one host, the
/// four transfers of a token block take about a fifth of the time of an assignment's forward and
/// backward pass; over 1 Gbit/s they take about as long as one assignment. The costs are constants,
/// not measured in the run: the placement decides the order of sums, and a run's bits must not
/// depend on its timing.
struct Costs {
  double assignment = 1;  // to compute one token block in one candidate
  double block = 0.5;     // to transfer one token block, for each of the two ranks
};

/// The samples of each rank: [EP] lists, ascending.
using SampleLists = std::vector<std::vector<std::int64_t>>;

/// Returns lists of counts[rank] consecutive samples, in the order of their numbers.
SampleLists consecutive_samples(const std::vector<std::int64_t>& counts);

/// Returns the estimated time of a step: the sum over layers of the largest load of a rank in that
/// layer. `routing`: of the group's batch, one for each selecting layer; `samples`: of each rank.
double estimated_time(const Placement& placement, const Routing& routing,
                      const SampleLists& samples, const Costs& costs);

/// Returns the samples that each rank takes, counts[rank] of them: starts from consecutive samples
/// and swaps pairs as long as that lowers the estimate, or keeps it and saves token blocks. The
/// result is the same on every rank; the search stops after a fixed amount of work, some
/// milliseconds.
SampleLists place_samples(const Placement& placement, const Routing& routing,
                          const std::vector<std::int64_t>& counts, const Costs& costs);

}  // namespace laterna::dist
