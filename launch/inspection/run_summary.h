// A run in one screen: progress, speed, FID, the checkpoints and their age, recent warnings, and
// what each rank is doing or was doing when it died. Reads only the run folder, also during
// training.
#pragma once

#include <filesystem>

namespace laterna::launch {

/// Prints the summary of `run`. Throws data::InputError when `run` is not a run folder.
void show_run(const std::filesystem::path& run);

}  // namespace laterna::launch
