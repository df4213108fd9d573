// The run folder of a training run (spec section 4), as one process holds it: opened once, locked
// against a second training, with the rule of what a run may go on with.
#pragma once

#include <cstdint>
#include <filesystem>

#include "launch/config.h"

namespace laterna::launch {

class RunFolder {
 public:
  /// Rank 0 makes and locks the folder; the others only name it. Throws data::WriteError when it
  /// cannot be made or written, UsageError when it is another folder's or another training's.
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
  std::filesystem::path heartbeat_folder() const { return path_ / "heartbeat"; }  // a file a rank

  /// Steps may have been trained here. A start that failed before is nothing to go on with.
  bool has_begun() const;
  /// The configuration that the run goes on with: `wanted`, where nothing differs that must not,
  /// with a micro-batch chosen earlier kept. Throws UsageError naming the first key and both
  /// values.
  Config reconcile(Config wanted) const;
  /// Keeps the resolved configuration with the run.
  void store(const Config& config) const;

 private:
  std::filesystem::path path_;
  int lock_ = -1;
};

/// The configuration that a run folder keeps, with `settings` over it. Throws data::InputError when
/// `run` is no run folder.
Config read_run_config(const std::filesystem::path& run, const Settings& settings);

}  // namespace laterna::launch
