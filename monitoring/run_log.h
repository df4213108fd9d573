// log.jsonl in the run folder: one JSON object a line, a line a training step. A run that goes on
// cuts the log back to its checkpoint first, so that every step stands there once.
#pragma once

#include <cstdint>
#include <filesystem>
#include <fstream>
#include <optional>
#include <vector>

#include "monitoring/step_record.h"

namespace laterna::monitoring {

class RunLog {
 public:
  /// Opens the log for appending after dropping every line of a step above `step` and any torn last
  /// line. Throws data::WriteError when the log cannot be written.
  RunLog(const std::filesystem::path& path, std::int64_t step);
  void append(const StepRecord& record);

 private:
  std::filesystem::path path_;
  std::ofstream file_;
};

/// All complete lines of a log; an unreadable line ends it. Empty when there is no log.
std::vector<StepRecord> read_log(const std::filesystem::path& path);

}  // namespace laterna::monitoring
