// Serves the metrics of a made-up job for tests with Prometheus: prints the port, then runs ten
// steps a second until its input ends. A line on the input changes the following steps:
//   skip: loss not finite        go: healthy        hang: no steps
#include <fmt/core.h>

#include <atomic>
#include <chrono>
#include <iostream>
#include <stdexcept>
#include <string>
#include <thread>

#include "monitoring/telemetry/metrics.h"
#include "tests/monitoring/example_records.h"

using namespace laterna::monitoring;

int main() {
  Metrics metrics("127.0.0.1", 0, {.version = "1", .torch = "2", .mpi = "4", .nccl = "none"});
  metrics.evaluation(example_evaluation());  // before a scrape is possible
  metrics.step(example_step());
  metrics.checkpoint(example_checkpoint());
  std::atomic<StepRecord (*)()> step = example_step;
  std::jthread training([&](const std::stop_token& end) {
    while (!end.stop_requested()) {
      if (const auto make = step.load()) {
        metrics.step(make());
        metrics.checkpoint(example_checkpoint());
      }
      std::this_thread::sleep_for(std::chrono::milliseconds(100));
    }
  });
  fmt::print("{}\n", metrics.port());
  std::fflush(stdout);
  for (std::string line; std::getline(std::cin, line);) {
    if (line == "skip") {
      step = example_skipped_step;
    } else if (line == "go") {
      step = example_step;
    } else if (line == "hang") {
      step = nullptr;
    } else {
      throw std::invalid_argument(line);
    }
  }
}
