// Saves checkpoints in the background of training. Training pauses only while each writing rank
// copies its tensors in memory; then a separate thread of that rank writes, syncs and hashes the
// copy, without calling MPI, while training continues. When poll() finds that all ranks have
// written, they exchange sizes and hashes, and a thread of rank 0 commits: it writes the manifest
// last, after everything else is on disk (spec section 4).
//
// A save that fails (a full disk, say) harms no earlier checkpoint; on_saved reports the failure.
#pragma once

#include <atomic>
#include <chrono>
#include <filesystem>
#include <functional>
#include <future>
#include <map>
#include <string>
#include <vector>

#include "dist/world.h"
#include "launch/checkpoint/checkpoint.h"
#include "monitoring/telemetry/run_log.h"
#include "monitoring/telemetry/step_record.h"

namespace laterna::launch {

/// The result of a save, the same on every rank.
struct Saved {
  std::int64_t step;
  std::string failure;  // empty: the checkpoint is complete
  monitoring::CheckpointRecord record;
};

/// All members but the constructor and the destructor are collective.
class CheckpointWriter {
 public:
  /// `log`: on rank 0 the run's log, which must be on disk up to a checkpoint's step before the
  /// checkpoint is; null on other ranks or without a log. All references outlive this object.
  CheckpointWriter(std::filesystem::path run, const Config& config, std::string data_sha256,
                   dist::World& world, const monitoring::RunLog* log,
                   std::function<void(const Saved&)> on_saved);
  /// Waits for the thread; a save that is not committed by then stays incomplete.
  ~CheckpointWriter() = default;

  /// Begins to save `state`, after waiting for the previous save. Does nothing when the step
  /// already has a complete checkpoint.
  void begin(const TrainingState& state);
  /// Advances a running save without waiting for the disk.
  void poll();
  /// Waits until no save is running.
  void finish();

 private:
  using Clock = std::chrono::steady_clock;
  enum class Phase { idle, writing, committing };

  Manifest::File write();
  void commit(const std::vector<Manifest::File>& files);
  void advance();
  void end(const std::string& failure);
  bool is_writer() const;

  std::filesystem::path run_;
  const Config& config_;
  std::string data_sha256_;
  dist::World& world_;
  const monitoring::RunLog* log_;
  std::function<void(const Saved&)> on_saved_;

  Phase phase_ = Phase::idle;
  std::int64_t step_ = 0, updates_ = 0;
  std::vector<model::ParameterSpec> specs_;
  std::map<std::string, at::Tensor> copies_;  // of checkpoint_buffers(), reused by later saves
  std::string obstacle_;                      // why this save must fail, known at its start
  std::atomic<std::int64_t> progress_ = 0;    // of the task, in no unit; for finish()
  monitoring::CheckpointRecord record_;
  Clock::time_point commit_began_;
  std::future<Manifest::File> task_;  // last: its destructor waits for the thread
};

}  // namespace laterna::launch
