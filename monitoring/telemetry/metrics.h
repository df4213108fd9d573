// Prometheus metrics of a training job: the families `laterna_...` at http://address:port/metrics
// on rank 0. Threads of prometheus-cpp serve them and only read numbers in memory, so a scrape
// never delays a step. Scrape configuration and alerts: monitoring/prometheus; dashboard:
// monitoring/grafana.
//
// A loss or norm that is not finite is shown as it is: train_loss and train_grad_norm are those of
// the last step, NaN and Inf included, never the last finite values (a flat line that looks
// healthy). A non-finite step between two scrapes stays visible in nonfinite_steps_total, and the
// alert reads both. Skipped steps count as steps in train_steps_total and in the times.
//
// Counters start at 0 with this process, except watchdog_timeouts_total, which counts the whole
// run. A value that is not known yet (loss before the first step, FID before the first evaluation)
// is absent; the two timestamps are 0 until known, so that an alert can detect "never".
#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <string>

#include "monitoring/telemetry/step_record.h"

namespace laterna::monitoring {

/// Labels of build_info; "none" for a component that this build or run lacks.
struct BuildFacts {
  std::string version, torch, mpi, nccl;
};

/// Any thread may call any member function.
class Metrics {
 public:
  /// Starts serving. `address`: an IPv4 address or name of this host ("0.0.0.0": all addresses;
  /// Debian's civetweb, used by prometheus-cpp, has no IPv6). `port`: 0 lets the system choose.
  /// Throws std::runtime_error naming address:port and the config keys to change when the metrics
  /// cannot be served there.
  Metrics(const std::string& address, int port, const BuildFacts& build);
  /// Waits until the last request is answered; the port is free afterwards.
  ~Metrics();
  Metrics(const Metrics&) = delete;
  Metrics& operator=(const Metrics&) = delete;

  /// Returns the port on which the metrics are served.
  int port() const;

  /// Updates the metrics of a step.
  void step(const StepRecord& record);
  void evaluation(const EvaluationRecord& record);
  /// Updates the metrics of a checkpoint; the time of the last success is now.
  void checkpoint(const CheckpointRecord& record);
  /// Sets the timeouts of the whole run, earlier starts included. (A timeout ends its process,
  /// usually before the next scrape, so the next start reports it.)
  void watchdog_timeouts(std::int64_t total);

 private:
  struct Served;
  std::unique_ptr<Served> served_;
};

/// Writes a file for Prometheus' file_sd_configs that names where the job is served, with the run's
/// folder as label `run`. `address` and `port` are those of Metrics; for "0.0.0.0" the file has
/// this host's name. Writes durably; throws data::WriteError naming the file.
void write_target_file(const std::filesystem::path& path, const std::string& address, int port,
                       const std::filesystem::path& run);

/// Removes the target from the file when the job has ended normally, so that no alert reports it as
/// down. Throws data::WriteError naming the file.
void withdraw_target_file(const std::filesystem::path& path);

}  // namespace laterna::monitoring
