#include "launch/training/run_folder.h"

#include <fmt/format.h>

#include <chrono>
#include <fstream>
#include <iterator>
#include <thread>

#include "data/error.h"
#include "data/files/durable_file.h"
#include "data/host.h"
#include "launch/checkpoint/checkpoint.h"

namespace laterna::launch {

namespace fs = std::filesystem;

RunFolder::RunFolder(fs::path path, bool owner) : path_(std::move(path)) {
  if (!owner) return;
  create();
  if (!is_run() && !fs::is_empty(path_)) {
    throw UsageError(fmt::format("--run {}: the folder holds files but no run; choose a new folder",
                                 path_.string()));
  }
  lock();
}

void RunFolder::lock() {
  try {
    if (lock_) {
      lock_->lock_again();
    } else {
      lock_.emplace(path_,
                    [](const std::string& text) { fmt::print(stderr, "warning: {}\n", text); });
    }
  } catch (const data::FolderLocked& locked) {
    throw UsageError(fmt::format(
        "--run {}: another training is running there ({}); `laterna stop --run {}` asks "
        "it to save and end",
        path_.string(), locked.owner.describe(), path_.string()));
  } catch (const data::WriteError& error) {
    throw data::WriteError(fmt::format("{}; choose another --run", error.what()));
  }
  data::sync_folder(path_);  // the lock file marks a run, whatever else a power cut leaves
}

void RunFolder::create() {
  try {
    data::make_folder_durably(fs::absolute(path_).lexically_normal());
  } catch (const data::WriteError& error) {
    throw data::WriteError(fmt::format("{}; choose another --run", error.what()));
  }
}

bool RunFolder::restore(const Config& config) {
  if (is_in_place()) return false;
  std::ifstream file(config_file());
  const std::string text{std::istreambuf_iterator<char>(file), {}};
  if (!text.empty() && text != to_toml(config)) {
    throw UsageError(path_.string() + " is another run's folder now");
  }
  create();
  lock();
  store(config);
  return true;
}

void RunFolder::await_owner(std::int64_t owner, double seconds) const {
  const auto began = std::chrono::steady_clock::now();
  for (;; std::this_thread::sleep_for(std::chrono::milliseconds(100))) {
    data::list_again(path_);
    const auto seen = data::FolderLock::last_owner(path_);
    if (seen && seen->id == owner) return;
    if (data::seconds_since(began) >= seconds) break;
  }
  throw UsageError(
      fmt::format("host {}: {} is not the run folder that rank 0 has locked; give a --run that is "
                  "the same folder on all hosts, on a file system that they share",
                  data::host_name(), fs::absolute(path_).string()));
}

bool RunFolder::is_run() const {
  return fs::exists(config_file()) || fs::exists(path_ / "lock") || has_begun();
}

bool RunFolder::has_begun() const {
  std::error_code missing;
  const auto bytes = fs::file_size(log_file(), missing);
  return (!missing && bytes > 0) || fs::exists(path_ / "checkpoints");
}

namespace {

/// Returns the manifest of the newest complete checkpoint that has a valid one.
std::optional<Manifest> newest_manifest(const fs::path& run) {
  auto steps = complete_checkpoints(run);
  for (; !steps.empty(); steps.pop_back()) {
    try {
      return read_manifest(run, steps.back());
    } catch (const data::InputError&) {  // resuming reports it
    }
  }
  return {};
}

}  // namespace

Config RunFolder::reconcile(Config wanted,
                            const std::function<void(const std::string&)>& warn) const {
  if (!has_begun()) return wanted;
  std::error_code none;
  const bool has_file = fs::file_size(config_file(), none) > 0 && !none;
  const auto manifest = newest_manifest(path_);
  if (!has_file) {
    warn(fmt::format(
        "{} is {}; {}", config_file().string(), none ? "missing" : "empty",
        manifest
            ? fmt::format("the configuration of the checkpoint of step {} counts", manifest->step)
            : "no checkpoint is there either, so the run starts again as configured "
              "now"));
    if (!manifest) return wanted;
  }
  const Config stored = manifest ? manifest->config : read_config(config_file(), {});
  const auto differences = forbidden_differences(stored, wanted);
  if (!differences.empty()) {
    const auto& d = differences.front();
    throw UsageError(fmt::format(
        "--run {}: the run was started with {} = {}, but now {} is given{}; give the original "
        "value, or choose a new --run",
        path_.string(), d.key, d.left, d.right,
        differences.size() > 1 ? fmt::format(" (and {} other keys differ)", differences.size() - 1)
                               : ""));
  }
  if (wanted.training.micro_batch == 0) wanted.training.micro_batch = stored.training.micro_batch;
  return wanted;
}

void RunFolder::store(const Config& config) const {
  data::write_file_durably(config_file(), to_toml(config));
}

Config read_run_config(const fs::path& run, const Settings& settings) {
  std::error_code none;
  if (fs::file_size(run / "config.toml", none) > 0 && !none) {
    return read_config(run / "config.toml", settings);
  }
  if (const auto manifest = newest_manifest(run)) {
    return parse_config(to_toml(manifest->config), run.string(), settings);
  }
  throw data::InputError(run.string() +
                         ": is not a run folder (it has neither config.toml nor a checkpoint)");
}

}  // namespace laterna::launch
