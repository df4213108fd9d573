// The part of a training run that exists only on rank 0: decides when all ranks save and evaluate,
// keeps the log, the warnings and the best checkpoint, shows progress, serves metrics and writes
// TensorBoard files. The ranks' numbers are summed in one small all-reduce at the end of each step
// (StepTotals); this object never calls MPI.
#pragma once

#include <chrono>
#include <memory>
#include <optional>
#include <string>

#include "launch/checkpoint/checkpoint_writer.h"
#include "launch/config.h"
#include "launch/evaluation/evaluation.h"
#include "launch/training/run_folder.h"
#include "monitoring/telemetry/event_file.h"
#include "monitoring/telemetry/metrics.h"
#include "monitoring/telemetry/progress.h"
#include "monitoring/telemetry/run_log.h"
#include "monitoring/telemetry/step_record.h"

namespace laterna::launch {

/// What all ranks do after a step.
struct Decision {
  bool save = false, evaluate = false;
};

class Coordinator {
 public:
  /// `start`: the number of completed steps; `build`: versions to report as metrics. Throws
  /// data::WriteError when the log cannot be written. A metrics port in use is only a warning.
  Coordinator(const Config& config, RunFolder& folder, std::int64_t start,
              const monitoring::BuildFacts& build);

  const monitoring::RunLog& log() const { return log_; }

  void step(const monitoring::StepRecord& record);
  void saved(const Saved& saved);
  /// Records an evaluation. Its checkpoint becomes the best one, unless the best so far was
  /// measured the same way and its FID is not higher.
  void evaluated(const Evaluated& evaluated);
  /// Warns that the checkpoint of `step` could not be evaluated, and why.
  void not_evaluated(std::int64_t step, const std::string& why);

  /// Returns what is due at `step`, the number of steps done: a save by checkpoint.every or
  /// checkpoint.minutes, and the evaluation of evaluation.every unless the log already has it or
  /// the job was killed in it twice.
  Decision decide(std::int64_t step);
  /// To be called when an evaluation of `step` begins, and when it ends without ending the job.
  void evaluating(std::int64_t step);
  void evaluation_ended();
  /// To be called when a save begins and no other is running: deletes old checkpoints.
  void saving();

  /// To be called when training ended normally: stops showing progress, and withdraws the target
  /// file so that Prometheus asks for no more metrics.
  void finish();

 private:
  monitoring::EventFile& events();
  void serve(const monitoring::BuildFacts& build);
  bool save_is_due(std::int64_t step) const;
  bool has_evaluated(std::int64_t step) const;
  std::int64_t evaluations_begun(std::int64_t step) const;
  void keep_folder();
  void keep_best(const Evaluated& evaluated);
  void write_best();
  void warn(const std::string& kind, const std::string& text);
  void note_troubles();
  /// Warns with `text` when the trouble `now` is new, that is, neither empty nor equal to `told`,
  /// the one last reported; then updates `told`.
  void note_trouble(std::string& told, const std::string& now, const std::string& kind,
                    const std::string& text);

  const Config& config_;
  RunFolder& folder_;
  monitoring::RunLog log_;
  std::unique_ptr<monitoring::EventFile> events_;  // created on first use
  std::unique_ptr<monitoring::Metrics> metrics_;   // null without a port
  monitoring::Progress progress_;
  std::int64_t start_;
  double loss_ = 0;                               // running mean
  std::optional<BestCheckpoint> unwritten_best_;  // best.json could not be written
  std::string log_trouble_, events_trouble_, save_trouble_, folder_trouble_;  // last reported
  std::chrono::steady_clock::time_point last_save_ = std::chrono::steady_clock::now();
};

}  // namespace laterna::launch
