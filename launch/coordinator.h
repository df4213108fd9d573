// What must run once in a training, on rank 0: it keeps the log, the warnings and the best
// checkpoint, shows progress, serves metrics and writes TensorBoard's files. The workers report
// through the step's own small collective (StepRecord); this object never calls MPI.
#pragma once

#include <chrono>
#include <memory>
#include <optional>
#include <string>

#include "launch/checkpoint_writer.h"
#include "launch/config.h"
#include "launch/evaluation.h"
#include "launch/run_folder.h"
#include "monitoring/event_file.h"
#include "monitoring/metrics.h"
#include "monitoring/progress.h"
#include "monitoring/run_log.h"
#include "monitoring/step_record.h"

namespace laterna::launch {

class Coordinator {
 public:
  /// `start`: the steps done; `build`: what metrics say of it. Throws data::WriteError when the log
  /// cannot be written. A metrics port that is taken is a warning.
  Coordinator(const Config& config, const RunFolder& folder, std::int64_t start,
              const monitoring::BuildFacts& build);

  const monitoring::RunLog& log() const { return log_; }

  void step(const monitoring::StepRecord& record);
  void saved(const Saved& saved);
  /// Its checkpoint becomes the best when no FID that was measured the same way is lower.
  void evaluated(const Evaluated& evaluated);
  /// The step could not be evaluated: why.
  void not_evaluated(std::int64_t step, const std::string& why);

  /// checkpoint.minutes have passed since the last save began.
  bool minutes_are_over() const;
  void saving();
  /// The log has the evaluation of that step.
  bool has_evaluated(std::int64_t step) const;

  /// The training ends in order: no progress is shown any more, and no metrics are asked for.
  void finish();

 private:
  monitoring::EventFile& events();
  void serve(const monitoring::BuildFacts& build);
  void keep_best(const Evaluated& evaluated);
  void write_best();
  void warn(const std::string& kind, const std::string& text);
  void note_troubles();
  /// Warns of a trouble when it begins.
  void note_trouble(std::string& told, const std::string& now, const std::string& kind,
                    const std::string& text);

  const Config& config_;
  const RunFolder& folder_;
  monitoring::RunLog log_;
  std::unique_ptr<monitoring::EventFile> events_;  // from the first thing that it shows
  std::unique_ptr<monitoring::Metrics> metrics_;   // none without a port
  monitoring::Progress progress_;
  std::int64_t start_;
  double loss_ = 0;                                          // running mean
  std::optional<BestCheckpoint> unwritten_best_;             // the disk was full
  std::string log_trouble_, events_trouble_, save_trouble_;  // already told
  std::chrono::steady_clock::time_point last_save_ = std::chrono::steady_clock::now();
};

}  // namespace laterna::launch
