// warnings.jsonl in the run folder: what went wrong in a run that went on, or was ended from
// outside: skipped steps, saves that failed, damaged checkpoints, dead and stuck ranks. One JSON
// object a line, from any rank; never cut back. `laterna inspect` shows the last.
#pragma once

#include <filesystem>
#include <string>
#include <vector>

namespace laterna::monitoring {

struct Warning {
  double time = 0;   // Unix
  std::string kind;  // "watchdog timeout", ...
  std::string text;
};

/// From any thread and process. A warning that cannot be kept (a full disk) is lost here: whoever
/// warns prints it as well.
void append_warning(const std::filesystem::path& file, const std::string& kind,
                    const std::string& text);
/// All readable ones, oldest first.
std::vector<Warning> read_warnings(const std::filesystem::path& file);

}  // namespace laterna::monitoring
