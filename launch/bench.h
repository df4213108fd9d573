// What the benchmarks of `laterna bench` share: each prints a table and, last, one JSON object.
#pragma once

#include <vector>

#include "dist/world.h"
#include "launch/config.h"

namespace laterna::launch {

double median(std::vector<double> values);

/// Collective, on any number of ranks; each kind is measured for about `seconds`. Rank 0 prints.
int bench_exchange(const Config& config, dist::World& world, double seconds);
int bench_scaling(Config config, dist::World& world, double seconds);

/// Samples/s that this process trains alone, measured for about two seconds on a few samples.
double training_speed(Config config, const dist::World& world);

}  // namespace laterna::launch
