// What Prometheus sees of a training job: the families of `laterna_...` at
// http://address:port/metrics on rank 0, served by threads of prometheus-cpp that only read numbers
// in memory, so that no scrape holds up a step. Scrape configuration and alerts:
// monitoring/prometheus; dashboard: monitoring/grafana.
//
// A step with a loss or norm that is not finite is shown as it is: train_loss and train_grad_norm
// are the last step's, NaN and Inf included, never the last finite one's (a flat line that looks
// healthy). What comes and goes between two scrapes stays in nonfinite_steps_total, and the alert
// reads both. Skipped steps are steps: train_steps_total and the times count them.
//
// Counters count from this process's start. What is not known yet (loss before the first step, FID
// before the first evaluation) is absent; the two timestamps are 0 until there is one, so that
// "never" can be alerted on.
#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <string>

#include "monitoring/step_record.h"

namespace laterna::monitoring {

/// The labels of build_info; "none" for what this build or run is without.
struct BuildFacts {
  std::string version, torch, mpi, nccl;
};

/// Any thread may call any member function.
class Metrics {
 public:
  /// Serves from now on. `address`: an IPv4 address or name of this host ("0.0.0.0": all of them;
  /// Debian's civetweb, below prometheus-cpp, has no IPv6). `port`: 0 lets the system choose.
  /// Throws std::runtime_error naming address:port and the keys to set when it cannot be served
  /// there.
  Metrics(const std::string& address, int port, const BuildFacts& build);
  /// At once; the port is free within two seconds, or when the process ends.
  ~Metrics();
  Metrics(const Metrics&) = delete;
  Metrics& operator=(const Metrics&) = delete;

  /// The port that is served.
  int port() const;

  /// Some 10 microseconds for a model of 12 layers and a quarter of one for each rank; three times
  /// that with spike rates and lateral connections.
  void step(const StepRecord& record);
  void evaluation(const EvaluationRecord& record);
  /// Now is the time of the last success.
  void checkpoint(const CheckpointRecord& record);
  /// `total`: those of the whole run, earlier starts included. (A timeout ends its process, most
  /// often before a scrape has seen it: the next start tells.)
  void watchdog_timeouts(std::int64_t total);

 private:
  struct Served;
  std::unique_ptr<Served> served_;
};

/// Tells Prometheus where the job is served: a file for its file_sd_configs, with the run's folder
/// as label `run`. `address` and `port` as served; for all addresses this host's name stands in
/// the file. Durable; throws data::WriteError naming the file.
void write_target_file(const std::filesystem::path& path, const std::string& address, int port,
                       const std::filesystem::path& run);

/// The job ends in order: the file names no target, and nobody is told that one is down. Throws
/// data::WriteError naming the file.
void withdraw_target_file(const std::filesystem::path& path);

}  // namespace laterna::monitoring
