// How fast would a configuration train on so many ranks over such a link, for every EP x DP: plain
// arithmetic on what the planner itself would send. It assumes that
//   - every rank can send and receive at once, whoever the peer, at 0.7 of the link's rate: what
//     `bench exchange` reached over 1 Gbit/s;
//   - a rank alone trains `samples_per_second`, and the candidates' part of that follows the
//     multiply-adds; the rank with most assignments keeps the others waiting;
//   - nothing of the exchange hides behind work, and gradients hide behind the backward pass, two
//     thirds of the computing;
//   - routing is that of a freshly started model at the first step's draws.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "launch/config.h"

namespace laterna::launch {

struct Cluster {
  std::int64_t ranks = 1;
  double link = 0;                // bytes/s of a rank, each way
  double samples_per_second = 0;  // that one rank alone trains
};

/// One layout; of its busiest rank and one training step.
struct LayoutCost {
  std::int64_t expert = 1, data = 1;
  std::int64_t parameters = 0;    // that a rank holds
  std::int64_t memory_bytes = 0;  // for weights, gradients, two moments and the average
  double exchange_bytes = 0;      // sent or received, whichever is more
  double gradient_bytes = 0;      // sent, which is as many as received
  double imbalance = 1;           // assignments of the busiest rank over the mean
  double compute_seconds = 0, exchange_seconds = 0, gradient_seconds = 0;  // the last: not hidden
  double step_seconds = 0, samples_per_second = 0;
};

/// Every EP that divides the ranks, up to N: more ranks than candidates hold replicas, which save
/// no memory and cost what data parallelism costs.
std::vector<LayoutCost> layout_costs(const Config& config, const Cluster& cluster);

/// "400Gbit", "1.5Gbit", "100Mbit" -> bytes/s. Throws UsageError naming what is allowed.
double link_rate(const std::string& text);

}  // namespace laterna::launch
