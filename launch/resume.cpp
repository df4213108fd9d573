#include "launch/resume.h"

#include <fmt/format.h>

#include <algorithm>

#include "data/error.h"
#include "launch/checkpoint.h"
#include "launch/together.h"
#include "monitoring/warnings.h"

namespace laterna::launch {
namespace {

/// On rank 0: the newest intact one, or -1. Those damaged are set aside.
std::int64_t newest_intact(const RunFolder& folder) {
  auto steps = complete_checkpoints(folder.path());
  std::string damaged;
  for (; !steps.empty(); steps.pop_back()) {
    try {
      verify_checkpoint(folder.path(), read_manifest(folder.path(), steps.back()));
      break;
    } catch (const data::InputError& error) {
      damaged += fmt::format("{}{}", damaged.empty() ? "" : "; ", error.what());
    }
  }
  if (damaged.empty()) return steps.empty() ? -1 : steps.back();
  if (steps.empty()) {
    throw data::InputError(damaged + "; no checkpoint of the run is intact: choose a new --run");
  }
  for (const auto step : complete_checkpoints(folder.path())) {
    if (step > steps.back()) set_aside_checkpoint(folder.path(), step);
  }
  const std::string text = fmt::format(
      "{}; going on from step {} instead (what is damaged is kept as "
      "step-N.damaged)",
      damaged, steps.back());
  fmt::print(stderr, "warning: damaged checkpoint: {}\n", text);
  monitoring::append_warning(folder.warnings_file(), "damaged checkpoint", text);
  return steps.back();
}

void load(const RunFolder& folder, std::int64_t step, const data::ImageSet& images,
          Trainer& trainer) {
  const auto seen = complete_checkpoints(folder.path());
  if (std::find(seen.begin(), seen.end(), step) == seen.end()) {
    throw data::InputError(fmt::format(
        "{}: does not show this rank the checkpoint of step {} that rank 0 sees; give a --run "
        "folder on a file system that all hosts share",
        folder.path().string(), step));
  }
  const Manifest manifest = read_manifest(folder.path(), step);
  if (manifest.data_sha256 != images.sha256()) {
    throw UsageError(fmt::format(
        "data.path = {}: holds other pixels (SHA-256 {}) than this run was trained with ({})",
        images.folder().string(), images.sha256(), manifest.data_sha256));
  }
  auto state = trainer.state();
  load_checkpoint(folder.path(), manifest, state);
}

}  // namespace

std::int64_t resume(const RunFolder& folder, const data::ImageSet& images, dist::World& world,
                    Trainer& trainer) {
  std::int64_t step = -1;
  together(world, [&] {
    if (world.rank() != 0) return;
    const auto scope = world.activity().enter("verifying the newest checkpoint");
    step = newest_intact(folder);
  });
  step = same_on_all_ranks(world, step);
  together(world, [&] {
    if (step >= 0) {
      const auto scope = world.activity().enter("loading the checkpoint");
      load(folder, step, images, trainer);
    } else if (world.rank() == 0) {
      const auto scope = world.activity().enter("verifying the images");
      images.verify();  // once, before anything is learnt from them
    }
  });
  return std::max<std::int64_t>(step, 0);
}

}  // namespace laterna::launch
