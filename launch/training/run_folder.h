// The run folder of a training run (spec section 4): where its files are, the lock against a second
// training, and the check of the configuration with which a run is resumed.
#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <optional>

#include "data/files/folder_lock.h"
#include "launch/config.h"

namespace laterna::launch {

class RunFolder {
 public:
  /// The `owner`, rank 0, creates and locks the folder; the other ranks only keep its path. Throws
  /// data::WriteError when the folder cannot be created or written, UsageError when it holds other
  /// files but no run, or when another training has locked it.
  RunFolder(std::filesystem::path path, bool owner);

  const std::filesystem::path& path() const { return path_; }
  std::filesystem::path config_file() const { return path_ / "config.toml"; }
  std::filesystem::path log_file() const { return path_ / "log.jsonl"; }
  std::filesystem::path warnings_file() const { return path_ / "warnings.jsonl"; }
  std::filesystem::path tensorboard_folder() const { return path_ / "tensorboard"; }
  /// While a training evaluates: the step, and how many times that evaluation was begun.
  std::filesystem::path evaluation_file() const { return path_ / "evaluation-begun"; }
  std::filesystem::path metrics_target_file() const { return path_ / "metrics-target.json"; }
  /// Holds one file per rank.
  std::filesystem::path heartbeat_folder() const { return path_ / "heartbeat"; }

  /// Returns the id of the lock's owner; only on the owner.
  std::int64_t owner() const { return lock_->owner().id; }
  /// Waits until this rank reads in its folder that `owner` has locked it. Throws UsageError after
  /// `seconds`: this rank's host has another folder under the same path.
  void await_owner(std::int64_t owner, double seconds) const;
  /// Whether the folder is, or was about to become, that of a run.
  bool is_run() const;
  /// Whether steps may have been trained here: the log has lines, or checkpoints/ exists. A start
  /// that failed before its first step leaves nothing to resume.
  bool has_begun() const;
  /// Returns the configuration to run with: `wanted`, with the micro-batch of the stored one where
  /// `wanted` sets none. The stored one is that of the newest checkpoint, or config.toml where
  /// there is no checkpoint. Throws UsageError when a key differs that a run must keep, naming the
  /// first such key and both values; `warn` is told of a stored configuration that is missing.
  Config reconcile(Config wanted, const std::function<void(const std::string&)>& warn) const;
  /// Writes the resolved configuration to config_file().
  void store(const Config& config) const;
  /// On the owner: whether the folder is still the one that was locked.
  bool is_in_place() const { return lock_->is_in_place(); }
  /// On the owner: creates and locks the folder again, with config.toml, if it was moved or removed
  /// since. Returns whether it was. Throws as the constructor does.
  bool restore(const Config& config);

 private:
  void create();
  void lock();

  std::filesystem::path path_;
  std::optional<data::FolderLock> lock_;  // on the owner
};

/// Reads the configuration stored in a run folder, overridden by `settings`: config.toml or, where
/// that is missing, the newest checkpoint's. Throws data::InputError when there is neither.
Config read_run_config(const std::filesystem::path& run, const Settings& settings);

}  // namespace laterna::launch
