// For tests: saves a checkpoint and waits until it is complete.
#pragma once

#include <filesystem>
#include <optional>
#include <string>

#include "data/error.h"
#include "launch/checkpoint/checkpoint_writer.h"

namespace laterna::launch {

/// Collective. Saves `state` and returns the bytes of the checkpoint, or 0 when the step already
/// had one. Throws data::WriteError.
inline std::int64_t save_checkpoint(const std::filesystem::path& run, const Config& config,
                                    const std::string& data_sha256, const TrainingState& state,
                                    dist::World& world) {
  std::optional<Saved> saved;
  CheckpointWriter writer(run, config, data_sha256, world, nullptr,
                          [&](const Saved& result) { saved = result; });
  writer.begin(state);
  writer.finish();
  if (saved && !saved->failure.empty()) throw data::WriteError(saved->failure);
  return saved ? saved->record.bytes : 0;
}

}  // namespace laterna::launch
