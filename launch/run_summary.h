// A run in one screen: how far it is, how fast, how good, what can be lost, what went wrong, and
// what each rank is doing or was doing when it died. Reads the run folder alone, also while
// training.
#pragma once

#include <filesystem>

namespace laterna::launch {

/// Prints it. Throws data::InputError when `run` is no run folder.
void show_run(const std::filesystem::path& run);

}  // namespace laterna::launch
