// The run folder of a training run (spec section 4): where its files are, the lock against a second
// training, and the check of the configuration with which a run is resumed.
#pragma once

#include <cstdint>
#include <filesystem>

#include "launch/config.h"

namespace laterna::launch {

class RunFolder {
 public:
  /// The `owner`, rank 0, creates and locks the folder; the other ranks only keep its path. Throws
  /// data::WriteError when the folder cannot be created or written, UsageError when it holds other
  /// files but no run, or when another training has locked it.
  RunFolder(std::filesystem::path path, bool owner);
  ~RunFolder();
  RunFolder(const RunFolder&) = delete;
  RunFolder& operator=(const RunFolder&) = delete;

  const std::filesystem::path& path() const { return path_; }
  std::filesystem::path config_file() const { return path_ / "config.toml"; }
  std::filesystem::path log_file() const { return path_ / "log.jsonl"; }
  std::filesystem::path warnings_file() const { return path_ / "warnings.jsonl"; }
  std::filesystem::path tensorboard_folder() const { return path_ / "tensorboard"; }
  std::filesystem::path metrics_target_file() const { return path_ / "metrics-target.json"; }
  /// Holds one file per rank.
  std::filesystem::path heartbeat_folder() const { return path_ / "heartbeat"; }

  /// Whether steps may have been trained here: the log has lines, or checkpoints/ exists. A start
  /// that failed before its first step leaves nothing to resume.
  bool has_begun() const;
  /// Returns the configuration to run with: `wanted`, with the micro-batch of the stored one where
  /// `wanted` sets none. Throws UsageError when a key differs that a run must keep, naming the
  /// first such key and both values.
  Config reconcile(Config wanted) const;
  /// Writes the resolved configuration to config_file().
  void store(const Config& config) const;

 private:
  std::filesystem::path path_;
  int lock_ = -1;
};

/// Reads the configuration stored in a run folder, overridden by `settings`. Throws
/// data::InputError when `run` is not a run folder.
Config read_run_config(const std::filesystem::path& run, const Settings& settings);

}  // namespace laterna::launch
