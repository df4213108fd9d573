// warnings.jsonl in the run folder: problems that a run survived or that the watchdog ended it for,
// such as skipped steps, failed saves, damaged checkpoints, dead and hung ranks. One JSON object
// per line, from any rank; never truncated. `laterna inspect` shows the last ones.
#pragma once

#include <filesystem>
#include <string>
#include <vector>

namespace laterna::monitoring {

struct Warning {
  double time = 0;   // Unix, seconds
  std::string kind;  // "watchdog timeout", ...
  std::string text;
};

/// Appends a warning; any thread and process may call it. A warning that cannot be written (a full
/// disk) is dropped silently, so callers print it as well.
void append_warning(const std::filesystem::path& file, const std::string& kind,
                    const std::string& text);
/// Reads all readable warnings, oldest first.
std::vector<Warning> read_warnings(const std::filesystem::path& file);

}  // namespace laterna::monitoring
