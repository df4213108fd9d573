#include "launch/training/resume.h"

#include <fmt/format.h>

#include <functional>

#include "data/error.h"
#include "launch/checkpoint/checkpoint.h"
#include "launch/collective.h"
#include "monitoring/telemetry/warnings.h"

namespace laterna::launch {
namespace {

/// For rank 0: returns the step of the newest intact checkpoint, or -1 without checkpoints, and
/// sets damaged newer ones aside. Throws data::InputError when all are damaged.
std::int64_t newest_intact(const RunFolder& folder, const std::function<void()>& progress) {
  auto steps = complete_checkpoints(folder.path());
  std::string damaged;
  for (; !steps.empty(); steps.pop_back()) {
    try {
      verify_checkpoint(folder.path(), read_manifest(folder.path(), steps.back()), progress);
      break;
    } catch (const data::InputError& error) {
      damaged += fmt::format("{}{}", damaged.empty() ? "" : "; ", error.what());
    }
  }
  if (damaged.empty()) return steps.empty() ? -1 : steps.back();
  if (steps.empty()) {
    throw data::InputError(damaged + "; the run has no intact checkpoint: choose a new --run");
  }
  for (const auto step : complete_checkpoints(folder.path())) {
    if (step > steps.back()) set_aside_checkpoint(folder.path(), step);
  }
  const std::string text = fmt::format(
      "{}; resuming from step {} instead (damaged checkpoints are kept as step-N.damaged)", damaged,
      steps.back());
  fmt::print(stderr, "warning: damaged checkpoint: {}\n", text);
  monitoring::append_warning(folder.warnings_file(), "damaged checkpoint", text);
  return steps.back();
}

void load(const RunFolder& folder, std::int64_t step, const data::ImageSet& images,
          dist::World& world, Trainer& trainer) {
  wait_for_checkpoint(folder.path(), step, appears_within(world),
                      [&] { world.heartbeat().touch(); });
  const Manifest manifest = read_manifest(folder.path(), step);
  if (manifest.data_sha256 != images.sha256()) {
    throw UsageError(
        fmt::format("data.path = {}: its pixels (SHA-256 {}) are not those that this run was "
                    "trained with ({}); give that data set, or choose a new --run",
                    images.folder().string(), images.sha256(), manifest.data_sha256));
  }
  auto state = trainer.state();
  load_checkpoint(folder.path(), manifest, state, [&] { world.heartbeat().touch(); });
}

}  // namespace

std::int64_t resume(const RunFolder& folder, const data::ImageSet& images, dist::World& world,
                    Trainer& trainer) {
  std::int64_t step = -1;
  run_collectively(world, [&] {
    if (world.rank() != 0) return;
    const auto scope = world.heartbeat().enter("verifying the newest checkpoint");
    step = newest_intact(folder, [&] { world.heartbeat().touch(); });
  });
  step = broadcast_from_root(world, step);
  run_collectively(world, [&] {
    if (step >= 0) {
      const auto scope = world.heartbeat().enter("loading the checkpoint");
      load(folder, step, images, world, trainer);
    }
    if (world.local_rank() == 0) {  // each host reads its own copy of the pixels
      const auto scope = world.heartbeat().enter("verifying the images");
      images.verify([&] { world.heartbeat().touch(); });
    }
  });
  return std::max<std::int64_t>(step, 0);
}

}  // namespace laterna::launch
