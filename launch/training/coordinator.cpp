#include "launch/training/coordinator.h"

#include <ATen/core/Tensor.h>
#include <fmt/format.h>

#include <algorithm>
#include <fstream>

#include "data/error.h"
#include "data/files/durable_file.h"
#include "data/host.h"
#include "data/pictures/image_file.h"
#include "monitoring/telemetry/warnings.h"

namespace laterna::launch {
namespace {

constexpr std::int64_t kEvents = 10000;  // steps, about, that a run's TensorBoard curves show
constexpr int kGridColumns = 8;
constexpr std::int64_t kMostAttempts = 2;  // at an evaluation that kills the job

}  // namespace

Coordinator::Coordinator(const Config& config, RunFolder& folder, std::int64_t start,
                         const monitoring::BuildFacts& build)
    : config_(config),
      folder_(folder),
      log_(folder.log_file(), start),
      progress_("step", config.training.steps, start),
      start_(start) {
  if (log_.damaged() > 0) {
    warn("log", fmt::format("{}: {} lines cannot be read and are skipped", log_.path().string(),
                            log_.damaged()));
  }
  serve(build);
}

void Coordinator::serve(const monitoring::BuildFacts& build) {
  const auto target = folder_.metrics_target_file();
  // An earlier start that crashed left its target file.
  if (std::filesystem::exists(target)) monitoring::withdraw_target_file(target);
  const auto& c = config_.metrics;
  if (c.port == 0) return;
  const int port = static_cast<int>(c.port);
  try {
    metrics_ = std::make_unique<monitoring::Metrics>(c.address, port, build);
  } catch (const std::runtime_error& error) {
    warn("no metrics", error.what());
    return;
  }
  monitoring::write_target_file(target, c.address, port, folder_.path());
  const auto warnings = monitoring::read_warnings(folder_.warnings_file());
  if (!log_.evaluations().empty()) metrics_->evaluation(log_.evaluations().back());
  metrics_->watchdog_timeouts(
      std::count_if(warnings.begin(), warnings.end(),
                    [](const auto& warning) { return warning.kind == "watchdog timeout"; }));
}

monitoring::EventFile& Coordinator::events() {
  if (!events_) {
    events_ = std::make_unique<monitoring::EventFile>(folder_.tensorboard_folder(), start_);
  }
  return *events_;
}

void Coordinator::warn(const std::string& kind, const std::string& text) {
  progress_.interrupt();
  monitoring::print_if_read(stderr, fmt::format("warning: {}: {}\n", kind, text));
  if (folder_.is_in_place()) monitoring::append_warning(folder_.warnings_file(), kind, text);
}

void Coordinator::note_trouble(std::string& told, const std::string& now, const std::string& kind,
                               const std::string& text) {
  if (!now.empty() && now != told) warn(kind, text);
  told = now;
}

void Coordinator::note_troubles() {
  if (!folder_trouble_.empty()) return;  // log and events have no other
  note_trouble(
      log_trouble_, log_.trouble(), "log",
      fmt::format(
          "{}; until there is free space, log lines stay in memory and no checkpoint is saved",
          log_.trouble()));
  note_trouble(events_trouble_, events().trouble(), "TensorBoard",
               fmt::format("{}; the curves will have a gap", events().trouble()));
}

/// Training outlives its folder: what follows is written to a new one at the same place. Where that
/// cannot be, log lines wait in memory and nothing is saved.
void Coordinator::keep_folder() {
  std::string trouble;
  try {
    if (folder_.restore(config_)) {
      log_.reopen();
      warn("run folder",
           fmt::format("{} was moved or removed while the training ran; it was created again, "
                       "without what it held before; until the run is started again, hangs are "
                       "not noticed",
                       folder_.path().string()));
    }
  } catch (const std::exception& error) {
    trouble = error.what();
  }
  note_trouble(folder_trouble_, trouble, "run folder",
               fmt::format("{}; until that is mended nothing is saved", trouble));
  log_.hold(trouble);
}

void Coordinator::step(const monitoring::StepRecord& record) {
  keep_folder();
  log_.append(record);
  if (metrics_) metrics_->step(record);
  const std::int64_t every = std::max<std::int64_t>(1, config_.training.steps / kEvents);
  if (record.step % every == 0 || !record.lateral.empty() || record.skipped) events().step(record);
  note_troubles();
  if (record.skipped) {
    warn("step skipped",
         fmt::format("step {}: loss {}, gradient norm {}: not finite; the weights are unchanged",
                     record.step, record.loss, record.grad_norm));
    return;
  }
  loss_ += (record.loss - loss_) / std::min<double>(100, double(record.step - start_));
  progress_.update(record.step,
                   fmt::format("loss {:.4f}  {:.0f} samples/s", loss_, record.samples_per_second));
}

void Coordinator::saved(const Saved& saved) {
  note_trouble(save_trouble_, saved.failure, "checkpoint not saved",
               fmt::format("step {}: {}; training continues, and the next save tries again",
                           saved.step, saved.failure));
  if (saved.failure.empty() && metrics_) metrics_->checkpoint(saved.record);
}

void Coordinator::evaluated(const Evaluated& evaluated) {
  const auto& record = evaluated.record;
  keep_best(evaluated);  // first: a step whose evaluation is in the log is not evaluated again
  log_.append(record);
  if (metrics_) metrics_->evaluation(record);
  events().evaluation(record);
  const at::Tensor& images = evaluated.first;  // uint8 [n,C,H,W]
  const auto grid = data::make_grid(
      images.const_data_ptr<std::uint8_t>(), images.size(0), static_cast<int>(images.size(1)),
      static_cast<int>(images.size(2)), static_cast<int>(images.size(3)), kGridColumns);
  events().image("evaluation/samples", record.step, data::encode_png(grid, "evaluation/samples"),
                 grid.height, grid.width, grid.channels);
  note_troubles();
  progress_.interrupt();
  monitoring::print_if_read(
      stdout, fmt::format("step {}: FID {:.3f} ({:.3f} to {:.3f})\n", record.step, record.fid,
                          record.fid_low, record.fid_high));
}

void Coordinator::keep_best(const Evaluated& evaluated) {
  const auto& record = evaluated.record;
  const auto best = best_checkpoint(folder_.path());
  const auto& known = unwritten_best_ ? unwritten_best_ : best;
  if (known && known->measured == evaluated.measured && known->fid <= record.fid) return;
  unwritten_best_ = {record.step, record.fid, evaluated.measured};
  write_best();
}

void Coordinator::write_best() {
  if (!unwritten_best_) return;
  try {
    set_best_checkpoint(folder_.path(), *unwritten_best_);
    unwritten_best_.reset();
    prune_checkpoints(folder_.path(), config_.checkpoint.keep);  // may delete the previous best
  } catch (const data::WriteError& error) {
    warn("best checkpoint", fmt::format("step {} is the best so far, but could not be recorded: "
                                        "{}; the next save tries again",
                                        unwritten_best_->step, error.what()));
  }
}

void Coordinator::not_evaluated(std::int64_t step, const std::string& why) {
  warn("no evaluation", fmt::format("step {}: {}", step, why));
}

Decision Coordinator::decide(std::int64_t step) {
  const std::int64_t every = config_.evaluation.every;
  Decision decision{.save = step > start_ && save_is_due(step),
                    .evaluate = every > 0 && step > 0 && step % every == 0 && !has_evaluated(step)};
  if (decision.evaluate && evaluations_begun(step) >= kMostAttempts) {
    decision.evaluate = false;
    not_evaluated(step, fmt::format("the job ended {} times in this evaluation; `laterna evaluate "
                                    "--run {} --step {}` does it by hand",
                                    kMostAttempts, folder_.path().string(), step));
  }
  return decision;
}

std::int64_t Coordinator::evaluations_begun(std::int64_t step) const {
  std::int64_t of_step = 0, times = 0;
  std::ifstream(folder_.evaluation_file()) >> of_step >> times;
  return of_step == step ? times : 0;
}

void Coordinator::evaluating(std::int64_t step) {
  try {
    data::write_file_durably(folder_.evaluation_file(),
                             fmt::format("{} {}\n", step, evaluations_begun(step) + 1));
  } catch (const data::WriteError&) {  // a full disk, which the save before has reported
  }
}

void Coordinator::evaluation_ended() {
  std::error_code none;
  std::filesystem::remove(folder_.evaluation_file(), none);
}

bool Coordinator::save_is_due(std::int64_t step) const {
  const auto& c = config_.checkpoint;
  if (c.every > 0 && step % c.every == 0) return true;
  return c.minutes > 0 && data::seconds_since(last_save_) >= 60 * c.minutes;
}

void Coordinator::saving() {
  last_save_ = std::chrono::steady_clock::now();
  keep_folder();
  write_best();  // before the save prunes older checkpoints
}

bool Coordinator::has_evaluated(std::int64_t step) const {
  return std::any_of(log_.evaluations().begin(), log_.evaluations().end(),
                     [&](const auto& record) { return record.step == step; });
}

void Coordinator::finish() {
  progress_.finish();
  if (!metrics_ || !folder_.is_in_place()) return;
  try {
    monitoring::withdraw_target_file(folder_.metrics_target_file());
  } catch (const data::WriteError& error) {
    warn("metrics", fmt::format("{}; Prometheus will report this job as down", error.what()));
  }
}

}  // namespace laterna::launch
