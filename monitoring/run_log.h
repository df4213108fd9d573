// log.jsonl in the run folder: one JSON object a line; a line a training step, and one for each
// evaluation ("evaluation": {...}). A run that goes on cuts the log back to its checkpoint first,
// so that everything stands there once.
//
// A disk that is full is no reason to stop training: lines wait in memory until there is room. But
// no checkpoint may be committed before the lines up to it are on disk: not while there is
// trouble().
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

#include "monitoring/step_record.h"

namespace laterna::monitoring {

class RunLog {
 public:
  /// Opens the log for appending after dropping every line of a step above `step` and any torn last
  /// line. Throws data::WriteError when the log cannot be written.
  RunLog(const std::filesystem::path& path, std::int64_t step);
  ~RunLog();
  RunLog(const RunLog&) = delete;
  RunLog& operator=(const RunLog&) = delete;

  void append(const StepRecord& record);
  void append(const EvaluationRecord& record);
  /// Why lines wait in memory, naming the file; empty when none do.
  const std::string& trouble() const { return trouble_; }
  const std::filesystem::path& path() const { return path_; }
  /// Those that the log kept from before, and those appended.
  const std::vector<EvaluationRecord>& evaluations() const { return evaluations_; }

 private:
  void append_line(std::string line);
  void write_waiting();
  void note_trouble();

  std::filesystem::path path_;
  int file_;
  std::int64_t size_ = 0;  // of the whole lines in the file
  std::string waiting_;    // whole lines
  std::string trouble_;
  std::vector<EvaluationRecord> evaluations_;
};

/// What the log has of an evaluation: {"samples": ..., "fid": ..., ...}; null is what is not known.
std::string to_text(const EvaluationRecord& record);

struct LogContent {
  std::vector<StepRecord> steps;
  std::vector<EvaluationRecord> evaluations;
};
/// All complete lines of a log, of a step what a summary needs; an unreadable line ends it. Empty
/// when there is no log.
LogContent read_log(const std::filesystem::path& path);

}  // namespace laterna::monitoring
