#include "launch/training/run_folder.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/file.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

#include "data/error.h"
#include "data/files/durable_file.h"

namespace laterna::launch {

namespace fs = std::filesystem;

RunFolder::RunFolder(fs::path path, bool owner) : path_(std::move(path)) {
  if (!owner) return;
  try {
    data::make_folder_durably(fs::absolute(path_).lexically_normal());
  } catch (const data::WriteError& error) {
    throw data::WriteError(fmt::format("{}; choose another --run", error.what()));
  }
  if (!fs::exists(config_file()) && !fs::is_empty(path_) && !fs::exists(path_ / "lock")) {
    throw UsageError(fmt::format("--run {}: the folder holds files but no run; choose a new folder",
                                 path_.string()));
  }
  lock_ = open((path_ / "lock").c_str(), O_CREAT | O_RDWR | O_CLOEXEC, 0644);
  if (lock_ < 0) {
    throw data::WriteError(fmt::format("{}: cannot be written: {}; choose another --run",
                                       path_.string(), std::strerror(errno)));
  }
  data::sync_folder(path_);  // the lock file marks a run, whatever else a power cut leaves
  // Other errors, such as ENOLCK of a file system without locks, do not prevent training.
  if (flock(lock_, LOCK_EX | LOCK_NB) != 0 && errno == EWOULDBLOCK) {
    throw UsageError(
        fmt::format("--run {}: another training is running there; `laterna stop --run {}` asks it "
                    "to save and end",
                    path_.string(), path_.string()));
  }
}

RunFolder::~RunFolder() {
  if (lock_ >= 0) close(lock_);
}

bool RunFolder::has_begun() const {
  std::error_code missing;
  const auto bytes = fs::file_size(log_file(), missing);
  return (!missing && bytes > 0) || fs::exists(path_ / "checkpoints");
}

Config RunFolder::reconcile(Config wanted) const {
  if (!fs::exists(config_file()) || !has_begun()) return wanted;
  const Config stored = read_config(config_file(), {});
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
  if (!fs::exists(run / "config.toml")) {
    throw data::InputError(run.string() + ": is not a run folder (it has no config.toml)");
  }
  return read_config(run / "config.toml", settings);
}

}  // namespace laterna::launch
