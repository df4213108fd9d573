// Saving behind training. Training stands still while each writing rank copies what it saves; then
// a thread of its own writes, syncs and hashes the copy, without a call of MPI, and training goes
// on. When the ranks find in passing that all have written, they exchange sizes and hashes, and
// rank 0's thread commits: the manifest, last, after everything else is on disk (spec section 4).
//
// A save that fails (a full disk) loses nothing that was complete before; on_saved says so.
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
#include "launch/checkpoint.h"
#include "monitoring/run_log.h"
#include "monitoring/step_record.h"

namespace laterna::launch {

/// How a save ended, the same on every rank.
struct Saved {
  std::int64_t step;
  std::string failure;  // empty: it is complete
  monitoring::CheckpointRecord record;
};

/// All but the constructor and the destructor are collective.
class CheckpointWriter {
 public:
  /// `log`: on rank 0 the log that must not be shorter than a checkpoint; else null. All outlive
  /// this object.
  CheckpointWriter(std::filesystem::path run, const Config& config, std::string data_sha256,
                   dist::World& world, const monitoring::RunLog* log,
                   std::function<void(const Saved&)> on_saved);
  /// Waits for its thread; what is not committed then is debris.
  ~CheckpointWriter() = default;

  /// Begins to save; waits for the save before. Does nothing when the step is safe already.
  void begin(const TrainingState& state);
  /// Takes a save that is under way further without waiting for the disk.
  void poll();
  /// Waits until nothing is under way.
  void finish();

 private:
  using Clock = std::chrono::steady_clock;
  enum class Phase { idle, writing, committing };

  Manifest::File write();
  void commit(const std::vector<Manifest::File>& files) const;
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
  std::map<std::string, at::Tensor> copies_;  // of checkpoint_buffers(), kept from save to save
  std::string obstacle_;                      // why this save cannot be, known from its start
  std::atomic<std::int64_t> written_ = 0;     // tensors, for a watcher
  monitoring::CheckpointRecord record_;
  Clock::time_point commit_began_;
  std::future<Manifest::File> task_;  // last: its destructor waits for the thread
};

}  // namespace laterna::launch
