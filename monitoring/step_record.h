// The plain facts of one training step: what the log keeps, the progress line shows and, later,
// metrics are made of. Who measures fills it in; nobody else computes anything here.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace laterna::monitoring {

/// A leg of the exchange over all ranks.
struct Leg {
  std::string name;
  std::int64_t blocks = 0, bytes = 0;
  double wait_seconds = 0;  // not hidden behind work, mean over the ranks
};

struct StepRecord {
  std::int64_t step = 0;  // steps done, this one included
  double loss = 0;        // mean squared error over the global batch
  double grad_norm = 0;   // before clipping, over all parameters
  double learning_rate = 0;
  double samples_per_second = 0;
  double seconds = 0;                     // the whole step
  double data_wait_seconds = 0;           // of them, waiting for the loader
  double communication_wait_seconds = 0;  // of them, waiting for gradients not hidden by backward
  /// Of the selecting layers in order, for each candidate: visits (a sample at a spiking step).
  std::vector<std::vector<std::int64_t>> visits;
  std::vector<Leg> exchange;  // the exchange between expert-parallel ranks; empty where EP is 1
  double imbalance = 1;       // visits served by the busiest rank over the mean
};

}  // namespace laterna::monitoring
