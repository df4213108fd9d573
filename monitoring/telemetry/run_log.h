// log.jsonl in the run folder: one JSON object per line, with a line for each training step and for
// each evaluation ("evaluation": {...}). A run that resumes first truncates the log to its
// checkpoint, so that no step appears twice.
//
// A full disk does not stop training: lines wait in memory until there is free space. But no
// checkpoint may be committed before the lines up to its step are on disk, that is, while trouble()
// is not empty.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

#include "monitoring/telemetry/step_record.h"

namespace laterna::monitoring {

class RunLog {
 public:
  /// Opens the log for appending after dropping a torn last line and all lines from the first one
  /// of a step above `step`. Damaged lines among the others are kept and skipped. Throws
  /// data::WriteError when the log cannot be written.
  RunLog(const std::filesystem::path& path, std::int64_t step);
  ~RunLog();
  RunLog(const RunLog&) = delete;
  RunLog& operator=(const RunLog&) = delete;

  void append(const StepRecord& record);
  void append(const EvaluationRecord& record);
  /// Opens what is at path() now, after the run folder was created again.
  void reopen();
  /// Lets lines wait in memory, with `why` as trouble(), or writes them if it is empty.
  void hold(const std::string& why);
  /// Returns why lines wait in memory, naming the file; empty when none do.
  const std::string& trouble() const { return trouble_; }
  const std::filesystem::path& path() const { return path_; }
  /// Returns how many damaged lines were found when the log was opened.
  std::int64_t damaged() const { return damaged_; }
  /// Returns the evaluations kept when the log was opened and those appended since.
  const std::vector<EvaluationRecord>& evaluations() const { return evaluations_; }

 private:
  void replace_if_gone();
  void use(int file);
  void append_line(std::string line);
  void write_waiting();
  void note_trouble();

  std::filesystem::path path_;
  int file_;
  std::int64_t size_ = 0;     // bytes of complete lines in the file
  std::int64_t damaged_ = 0;  // lines
  std::string waiting_;       // complete lines not yet written
  std::string trouble_, obstacle_;
  std::vector<EvaluationRecord> evaluations_;
};

/// Returns an evaluation as in the log: {"samples": ..., "fid": ..., ...}; null when not known.
std::string to_text(const EvaluationRecord& record);

struct LogContent {
  std::vector<StepRecord> steps;  // the last ones
  double first_loss = 0;
  std::int64_t skipped = 0;  // steps whose loss was not finite
  std::vector<EvaluationRecord> evaluations;
  std::int64_t damaged = 0;  // lines that cannot be read
};
/// Reads the complete lines of a log, and the last `recent` steps among them with the fields that a
/// summary needs. Empty when there is no log.
LogContent read_log(const std::filesystem::path& path, std::size_t recent);

}  // namespace laterna::monitoring
