// Example records of a healthy job on 3 ranks with 2 selecting layers of 3 candidates. The
// records fill every metric family.
#pragma once

#include <cmath>

#include "monitoring/telemetry/step_record.h"

namespace laterna::monitoring {

inline StepRecord example_step() {
  StepRecord record;
  record.step = 7;
  record.samples = 12;
  record.loss = 0.25;
  record.grad_norm = 1.5;
  record.learning_rate = 1e-4;
  record.samples_per_second = 24;
  record.seconds = 0.5;
  record.data_wait_seconds = 0.125;
  record.phases = {{"data", 0.125},   {"plan", 0.01},   {"forward", 0.1},
                   {"backward", 0.2}, {"reduce", 0.03}, {"optimizer", 0.035}};
  record.ranks = {{0.25, 1000}, {0.25, 2000}, {0.3125, 3000}};
  record.rank_seconds = {0.25, 0.25, 0.3125};
  record.rank_memory_bytes = {1000, 2000, 3000};
  record.slowest_rank = 2;
  record.selecting_layers = {1, 2};
  record.assignments = {{10, 20, 18}, {16, 16, 16}};
  record.exchange = {{"dispatch", 8, 4096, 0.0625}, {"combine", 8, 8192, 0.03125}};
  for (const std::int64_t layer : record.selecting_layers) {
    record.lateral.push_back({layer, 0.75, 0.5, 6.0, -0.25});
    for (const char* site : {"input", "q", "k", "v", "attention", "z", "hidden"}) {
      record.spike_rates.push_back({layer, site, 0.0625});
    }
  }
  return record;
}

/// Returns a skipped step, whose loss and gradient norm are not finite.
inline StepRecord example_skipped_step() {
  StepRecord record = example_step();
  record.loss = std::nan("");
  record.grad_norm = INFINITY;
  record.skipped = true;
  return record;
}

inline CheckpointRecord example_checkpoint() {
  return {.step = 7,
          .bytes = 1 << 20,
          .snapshot_seconds = 0.0025,
          .write_seconds = 0.75,
          .commit_seconds = 0.03};
}

inline EvaluationRecord example_evaluation() {
  return {.step = 7, .samples = 5000, .fid = 21.5, .fid_low = 20.75, .fid_high = 22.25};
}

}  // namespace laterna::monitoring
