// Estimates how fast a configuration trains on a given number of ranks and link, for every layout
// EP x DP, by arithmetic on the transfers that the planner would schedule. The model assumes that
//   - every rank sends and receives at once, to and from any peer, at 0.7 of the link's rate, which
//     `bench exchange` reached over 1 Gbit/s;
//   - a single rank trains `samples_per_second`; the candidates' part of this time follows the
//     multiply-adds, and the rank with the most assignments keeps the others waiting;
//   - no part of the exchange is hidden behind computation; gradients are hidden behind the
//     backward pass, which is two thirds of the computation;
//   - routing is that of a freshly initialised model for the random draws of the first step.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "launch/config.h"

namespace laterna::launch {

struct Cluster {
  std::int64_t ranks = 1;
  double link = 0;                // bytes/s per rank, in each direction
  double samples_per_second = 0;  // of a single rank
};

/// The cost of one layout, for its busiest rank and one training step.
struct LayoutCost {
  std::int64_t expert = 1, data = 1;
  std::int64_t parameters = 0;    // held by a rank
  std::int64_t memory_bytes = 0;  // of weights, gradients, two moments and the average
  double exchange_bytes = 0;      // sent or received, whichever is more
  double gradient_bytes = 0;      // sent; as many are received
  double imbalance = 1;           // assignments of the busiest rank over the mean
  double compute_seconds = 0, exchange_seconds = 0, gradient_seconds = 0;  // gradients: not hidden
  double step_seconds = 0, samples_per_second = 0;
};

/// Returns the cost of every EP that divides the ranks, up to N. With EP > N some ranks of a group
/// hold the same shard, which saves no memory and costs as much as data parallelism.
std::vector<LayoutCost> layout_costs(const Config& config, const Cluster& cluster);

/// Parses a rate such as "400Gbit", "1.5Gbit" or "100Mbit" into bytes/s. Throws UsageError naming
/// the allowed forms.
double link_rate(const std::string& text);

}  // namespace laterna::launch
