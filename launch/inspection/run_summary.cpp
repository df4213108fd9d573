#include "launch/inspection/run_summary.h"

#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <ctime>

#include "data/error.h"
#include "data/host.h"
#include "dist/watchdog.h"
#include "launch/checkpoint/checkpoint.h"
#include "launch/training/run_folder.h"
#include "monitoring/telemetry/run_log.h"
#include "monitoring/telemetry/warnings.h"

namespace laterna::launch {
namespace {

namespace fs = std::filesystem;

constexpr std::size_t kRecentSteps = 100, kRecentWarnings = 5;

std::string time_text(double unix_time, const char* format) {
  const auto seconds = static_cast<std::time_t>(unix_time);
  std::tm local{};
  localtime_r(&seconds, &local);
  char text[32];
  std::strftime(text, sizeof(text), format, &local);
  return text;
}

std::string duration(double seconds) {
  if (seconds < 120) return fmt::format("{:.0f} s", seconds);
  if (seconds < 7200) return fmt::format("{:.0f} min", seconds / 60);
  if (seconds < 2 * 86400) return fmt::format("{:.1f} h", seconds / 3600);
  return fmt::format("{:.1f} days", seconds / 86400);
}

/// Whether a process of this host still runs this program; a killed process may remain as a zombie.
bool is_running(int pid) {
  const auto process = data::process_state(pid);
  return process.name.starts_with("laterna") && !process.has_ended();
}

struct Ranks {
  std::vector<dist::HeartbeatRecord> unfinished;  // did not end normally
  std::size_t ended = 0, dead = 0;
  std::vector<fs::path> unreadable;
  std::string host;  // this host; the processes of other hosts cannot be checked
};

Ranks look_at_ranks(const fs::path& folder) {
  Ranks ranks;
  ranks.host = data::host_name();
  for (const auto& file : dist::heartbeat_files(folder)) {
    const auto record = dist::Heartbeat::read(file);
    if (!record) {
      ranks.unreadable.push_back(file);
    } else if (record->ended) {
      ++ranks.ended;
    } else {
      ranks.dead += record->host == ranks.host && !is_running(record->pid);
      ranks.unfinished.push_back(*record);
    }
  }
  return ranks;
}

void show_state(const fs::path& run, const Config& config, const monitoring::LogContent& log,
                const Ranks& ranks) {
  const std::int64_t done = log.steps.empty() ? 0 : log.steps.back().step;
  const auto checkpoints = complete_checkpoints(run);
  const std::int64_t saved = checkpoints.empty() ? 0 : checkpoints.back();
  const bool is_training = ranks.dead == 0 && !ranks.unfinished.empty();
  const char* state = ranks.dead > 0                   ? "died"
                      : is_training                    ? "training"
                      : saved >= config.training.steps ? "done"
                      : ranks.ended == 0               ? "not started"
                      : saved < done                   ? "not saved"
                                                       : "stopped";
  fmt::print("state        {}: {} of {} steps ({:.1f}%)", state, done, config.training.steps,
             100.0 * double(done) / double(config.training.steps));
  if (!is_training && saved < done) {
    fmt::print("; the last {} are not saved, training resumes from step {}", done - saved, saved);
  }
  fmt::print("\n");
  if (log.damaged > 0) fmt::print("log          {} lines cannot be read\n", log.damaged);
  if (log.steps.empty()) return;
  double loss = 0, seconds = 0;
  std::size_t finite = 0;
  for (const auto& step : log.steps) {
    seconds += step.seconds;
    if (step.skipped) continue;
    loss += step.loss;
    ++finite;
  }
  fmt::print("loss         {:.5f} (mean of the last {} steps; the first step's loss was {:.5f})\n",
             loss / double(finite), finite, log.first_loss);
  if (log.skipped > 0) {
    fmt::print("skipped      {} steps whose loss was not finite\n", log.skipped);
  }
  const double rate = double(log.steps.size()) / seconds;
  fmt::print("speed        {:.1f} samples/s, {:.3g} steps/s", rate * double(config.training.batch),
             rate);
  if (done < config.training.steps) {
    fmt::print("; {} of training left", duration(double(config.training.steps - done) / rate));
  }
  fmt::print("\n");
}

void show_quality(const fs::path& run, const monitoring::LogContent& log) {
  if (log.evaluations.empty()) return;
  const auto& last = log.evaluations.back();
  fmt::print("FID          {:.3f} ({:.3f} to {:.3f}) at step {}, {} samples", last.fid,
             last.fid_low, last.fid_high, last.step, last.samples);
  if (const auto best = best_checkpoint(run)) {
    fmt::print("; the best, {:.3f}, at step {}", best->fid, best->step);
  }
  fmt::print("\n");
}

void show_checkpoints(const fs::path& run) {
  const auto steps = complete_checkpoints(run);
  if (steps.empty()) fmt::print("checkpoints  none yet\n");
  for (const auto step : steps) {
    try {
      const Manifest manifest = read_manifest(run, step);
      std::int64_t bytes = 0;
      for (const auto& file : manifest.files) bytes += file.bytes;
      const auto age = fs::file_time_type::clock::now() -
                       fs::last_write_time(checkpoint_folder(run, step) / "manifest.json");
      fmt::print("checkpoint   step {}, {:.1f} MB, {} file(s), {} old\n", step, double(bytes) / 1e6,
                 manifest.files.size(), duration(std::chrono::duration<double>(age).count()));
    } catch (const data::InputError& error) {
      fmt::print("checkpoint   {}\n", error.what());
    }
  }
}

void show_warnings(const fs::path& file) {
  const auto warnings = monitoring::read_warnings(file);
  const std::size_t shown = std::min(kRecentWarnings, warnings.size());
  for (std::size_t i = warnings.size() - shown; i < warnings.size(); ++i) {
    fmt::print("warning      {} {}: {}\n", time_text(warnings[i].time, "%F %T"), warnings[i].kind,
               warnings[i].text);
  }
  if (shown < warnings.size()) {
    fmt::print("             and {} older warnings in {}\n", warnings.size() - shown,
               file.string());
  }
}

void show_ranks(const Ranks& ranks) {
  for (const auto& file : ranks.unreadable) {
    fmt::print("rank ?       {} is not a rank's heartbeat\n", file.string());
  }
  for (const auto& r : ranks.unfinished) {
    const char* state = r.host != ranks.host ? "running or dead"
                        : is_running(r.pid)  ? "running"
                                             : "died";
    fmt::print("rank {:<7} {} ({}, pid {}): {}, since {} ({})\n", r.rank, state, r.host, r.pid,
               dist::describe(r), time_text(r.since, "%T"),
               duration(std::max(0.0, data::unix_time() - r.since)));
  }
  if (ranks.ended > 0) {
    fmt::print("ranks        {} of {} ended normally\n", ranks.ended,
               ranks.ended + ranks.unfinished.size() + ranks.unreadable.size());
  }
}

}  // namespace

void show_run(const fs::path& run) {
  const Config config = read_run_config(run, {});
  const RunFolder folder(run, false);
  const auto log = monitoring::read_log(folder.log_file(), kRecentSteps);
  const Ranks ranks = look_at_ranks(folder.heartbeat_folder());
  const auto& m = config.model;
  fmt::print("run          {}\n", run.string());
  show_state(run, config, log, ranks);
  show_quality(run, log);
  show_checkpoints(run);
  show_warnings(folder.warnings_file());
  show_ranks(ranks);
  fmt::print(
      "model        {0}x{0}x{1}, patch {2}, width {3}, depth {4}, heads {5}, T {6}, N {7}, k {8}, "
      "selection {9}, lateral {10}\n",
      m.image_size, m.channels, m.patch, m.width, m.depth, m.heads, m.spiking_steps, m.candidates,
      m.selected, m.selection, m.lateral ? "on" : "off");
  fmt::print("data         {}\n", config.data.path);
}

}  // namespace laterna::launch
