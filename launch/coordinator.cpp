#include "launch/coordinator.h"

#include <fmt/format.h>

#include <algorithm>

#include "monitoring/warnings.h"

namespace laterna::launch {
namespace {

constexpr std::int64_t kEvents = 10000;  // steps that a whole run's curves show

}  // namespace

Coordinator::Coordinator(const Config& config, const RunFolder& folder, std::int64_t start)
    : config_(config),
      folder_(folder),
      log_(folder.log_file(), start),
      events_(folder.tensorboard_folder(), start),
      progress_("step", config.training.steps, start),
      start_(start) {}

void Coordinator::warn(const std::string& kind, const std::string& text) {
  progress_.interrupt();
  fmt::print(stderr, "warning: {}: {}\n", kind, text);
  monitoring::append_warning(folder_.warnings_file(), kind, text);
}

void Coordinator::note_trouble(std::string& told, const std::string& now, const std::string& kind,
                               const std::string& text) {
  if (!now.empty() && now != told) warn(kind, text);
  told = now;
}

void Coordinator::step(const monitoring::StepRecord& record) {
  log_.append(record);
  note_trouble(
      log_trouble_, log_.trouble(), "log",
      fmt::format("{}: cannot be written: {}; its lines wait in memory, and no checkpoint is "
                  "saved, until there is room",
                  log_.path().string(), log_.trouble()));
  const std::int64_t every = std::max<std::int64_t>(1, config_.training.steps / kEvents);
  if (record.step % every == 0 || !record.lateral.empty() || record.skipped) events_.step(record);
  note_trouble(events_trouble_, events_.trouble(), "TensorBoard",
               fmt::format("{}; its curves have a gap", events_.trouble()));
  if (record.skipped) {
    warn(
        "step skipped",
        fmt::format("step {}: loss {}, gradient norm {}: not finite; the weights stay as they were",
                    record.step, record.loss, record.grad_norm));
    return;
  }
  loss_ += (record.loss - loss_) / std::min<double>(100, double(record.step - start_));
  progress_.update(record.step,
                   fmt::format("loss {:.4f}  {:.0f} samples/s", loss_, record.samples_per_second));
}

void Coordinator::saved(const Saved& saved) {
  note_trouble(save_trouble_, saved.failure, "checkpoint not saved",
               fmt::format("step {}: {}; training goes on, and the next save tries again",
                           saved.step, saved.failure));
}

void Coordinator::evaluated(const monitoring::EvaluationRecord& record) {
  log_.append(record);
  progress_.interrupt();
  fmt::print("step {}: FID {:.3f} ({:.3f} to {:.3f})\n", record.step, record.fid, record.fid_low,
             record.fid_high);
}

bool Coordinator::minutes_are_over() const {
  const std::chrono::duration<double> since = std::chrono::steady_clock::now() - last_save_;
  return config_.checkpoint.minutes > 0 && since.count() >= 60 * config_.checkpoint.minutes;
}

void Coordinator::saving() { last_save_ = std::chrono::steady_clock::now(); }

bool Coordinator::has_evaluated(std::int64_t step) const {
  const auto evaluations = monitoring::read_log(log_.path()).evaluations;
  return std::any_of(evaluations.begin(), evaluations.end(),
                     [&](const auto& record) { return record.step == step; });
}

void Coordinator::finish() { progress_.finish(); }

}  // namespace laterna::launch
