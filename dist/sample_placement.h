// Which rank of an expert-parallel group takes which sample of the group's batch. Every rank can
// read every image and draw every noise, so this is free, and the mathematics is the same: a sample
// goes where its candidates are when that shortens the step. Fewer blocks that travel are not
// enough: they may leave one rank with most of the assignments, and all wait for the slowest.
#pragma once

#include <cstdint>
#include <vector>

#include "dist/placement.h"
#include "dist/step_plan.h"

namespace laterna::dist {

/// What a step's time is made of, in any common unit. The defaults: between two ranks of one host
/// the four transfers of a block take about a fifth of the time of an assignment's forward and
/// backward pass; over 1 Gbit/s about as long as one. Constants, not measured in the run: the
/// placing decides the order of sums, and a run's bits must not depend on its timing.
struct Costs {
  double assignment = 1;  // of computing one block in one candidate
  double block = 0.5;     // of a block that travels, for each of the two ranks
};

/// Samples of each rank: [EP] lists, ascending.
using SampleLists = std::vector<std::vector<std::int64_t>>;

/// As many as counts[rank] each, in the order of their numbers.
SampleLists consecutive_samples(const std::vector<std::int64_t>& counts);

/// The time of a step: the sum over layers of the load of the rank that has most to do there.
/// `choices` of the group's batch, one for each selecting layer, its samples in `samples`.
double estimated_time(const Placement& placement, const std::vector<Choices>& choices,
                      const SampleLists& samples, const Costs& costs);

/// From consecutive samples on, pairs change places as long as that lowers the estimate, or leaves
/// it and saves blocks. The same on every rank; the search is cut off after a fixed amount of work,
/// some milliseconds.
SampleLists place_samples(const Placement& placement, const std::vector<Choices>& choices,
                          const std::vector<std::int64_t>& counts, const Costs& costs);

}  // namespace laterna::dist
