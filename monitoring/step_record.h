// The plain facts of one training step: what the log keeps, the progress line shows and, later,
// metrics are made of. Who measures fills it in; nobody else computes anything here.
#pragma once

#include <cstdint>

namespace laterna::monitoring {

struct StepRecord {
  std::int64_t step = 0;  // steps done, this one included
  double loss = 0;        // mean squared error over the global batch
  double grad_norm = 0;   // before clipping, over all parameters
  double learning_rate = 0;
  double samples_per_second = 0;
  double seconds = 0;                     // the whole step
  double data_wait_seconds = 0;           // of them, waiting for the loader
  double communication_wait_seconds = 0;  // of them, waiting for gradients not hidden by backward
};

}  // namespace laterna::monitoring
