#include "dist/watchdog.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <signal.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>

#include "data/host.h"

namespace laterna::dist {
namespace {

namespace fs = std::filesystem;
using namespace std::chrono_literals;

// mpirun kills the other ranks about a second after a rank died: the report must come before that.
constexpr auto kLook = 50ms;

bool is_dead(int pid) { return kill(pid, 0) != 0 && errno == ESRCH; }

/// Returns whether a signal (SIGSTOP) or a debugger has stopped the process; false for processes of
/// other hosts.
bool is_stopped(int pid) {
  const char state = data::process_state(pid).state;
  return state == 'T' || state == 't';
}

std::string name_of(const HeartbeatRecord& r) {
  return fmt::format("rank {} ({}, pid {})", r.rank, r.host, r.pid);
}

/// Returns true for the first rank that calls this, which reports for all ranks.
bool is_first(const fs::path& folder) {
  const int file =
      open((folder / "reported").c_str(), O_CREAT | O_EXCL | O_WRONLY | O_CLOEXEC, 0644);
  if (file >= 0) close(file);
  return file >= 0 || errno != EEXIST;
}

}  // namespace

fs::path heartbeat_file(const fs::path& folder, int rank) {
  return folder / fmt::format("rank-{:05}", rank);
}

std::vector<fs::path> heartbeat_files(const fs::path& folder) {
  std::vector<fs::path> files;
  std::error_code none;
  for (const auto& entry : fs::directory_iterator(folder, none)) {
    if (entry.path().filename().string().starts_with("rank-")) files.push_back(entry.path());
  }
  std::sort(files.begin(), files.end());
  return files;
}

std::vector<HeartbeatRecord> read_heartbeats(const fs::path& folder) {
  std::vector<HeartbeatRecord> records;
  for (const auto& file : heartbeat_files(folder)) {
    if (auto record = Heartbeat::read(file)) records.push_back(std::move(*record));
  }
  std::sort(records.begin(), records.end(),
            [](const auto& a, const auto& b) { return a.rank < b.rank; });
  return records;
}

std::string describe_hang(const std::vector<HeartbeatRecord>& ranks, double seconds) {
  std::string stuck, waiting;
  const auto add = [](std::string& list, const std::string& text) {
    list += (list.empty() ? "" : "; ") + text;
  };
  for (const auto& r : ranks) {
    if (r.ended) continue;
    const bool stopped = is_stopped(r.pid);
    if (stopped || r.peer == kNoPeer) {
      add(stuck, fmt::format("{}: {}{}", name_of(r), describe(r),
                             stopped ? ", its process is stopped" : ""));
    } else {
      add(waiting, fmt::format("{}: {}", name_of(r), describe(r)));
    }
  }
  if (stuck.empty())
    return fmt::format("no rank made progress for {:g} s; the ranks wait for each other: {}",
                       seconds, waiting);
  return fmt::format("no rank made progress for {:g} s; stuck: {}{}", seconds, stuck,
                     waiting.empty() ? "" : "; waiting: " + waiting);
}

Watchdog::Watchdog(fs::path folder, int rank, double seconds, Report report)
    : folder_(std::move(folder)), rank_(rank), seconds_(seconds), report_(std::move(report)) {
  const auto records = read_heartbeats(folder_);
  const auto mine = std::find_if(records.begin(), records.end(),
                                 [&](const auto& record) { return record.rank == rank; });
  for (const auto& record : records) {
    if (mine != records.end() && record.host == mine->host && record.rank != rank) {
      neighbours_.push_back(record);
    }
  }
  thread_ = std::thread([this] { run(); });
}

Watchdog::~Watchdog() {
  {
    const std::lock_guard lock(mutex_);
    stopping_ = true;
  }
  stop_.notify_all();
  thread_.join();
}

void Watchdog::run() {
  const auto every = static_cast<std::int64_t>(std::max(1.0, seconds_ / 20 / 0.05));
  last_check_ = mine_since_ = Clock::now();
  std::unique_lock lock(mutex_);
  for (std::int64_t look = 1; !stop_.wait_for(lock, kLook, [this] { return stopping_; }); ++look) {
    lock.unlock();
    look_for_the_dead();
    if (look % every == 0) check_progress();
    lock.lock();
  }
}

void Watchdog::look_for_the_dead() {
  for (const auto& neighbour : neighbours_) {
    if (!is_dead(neighbour.pid)) continue;
    const auto last = Heartbeat::read(heartbeat_file(folder_, neighbour.rank));
    if (last && last->ended) continue;
    fail("rank died", fmt::format("{} died: {}", name_of(neighbour),
                                  last ? describe(*last) : "its heartbeat cannot be read"));
  }
}

/// Whether no other process of this host can read the heartbeats of all ranks before this one.
bool Watchdog::reads_for_this_host() const {
  return std::none_of(neighbours_.begin(), neighbours_.end(), [&](const auto& neighbour) {
    return neighbour.rank < rank_ && !is_dead(neighbour.pid) && !is_stopped(neighbour.pid);
  });
}

// One rank that makes progress is enough: the others wait for it.
void Watchdog::check_progress() {
  const auto now = Clock::now();
  const auto limit = std::chrono::duration<double>(seconds_);
  // A check that comes late: the process was stopped or suspended, and the other ranks, too.
  const bool suspended =
      now - last_check_ >
      std::max<Clock::duration>(1s, std::chrono::duration_cast<Clock::duration>(limit / 4));
  last_check_ = now;
  const auto mine = Heartbeat::read(heartbeat_file(folder_, rank_));
  if (!mine || mine->ended || mine->progress != my_progress_ || suspended) {
    if (mine) my_progress_ = mine->progress;
    mine_since_ = now;
    all_progress_.clear();
    return;
  }
  if (now - mine_since_ < limit / 4 || !reads_for_this_host()) return;
  const auto all = read_heartbeats(folder_);
  std::map<int, std::uint64_t> progress;
  for (const auto& record : all) {
    if (!record.ended) progress[record.rank] = record.progress;
  }
  if (progress != all_progress_) {
    all_progress_ = std::move(progress);
    all_since_ = now;
  }
  if (now - mine_since_ >= limit && now - all_since_ >= 0.7 * limit) {
    fail("watchdog timeout", describe_hang(all, seconds_));
  }
}

void Watchdog::fail(const std::string& kind, const std::string& text) {
  if (is_first(folder_)) {
    const std::string line = fmt::format(
        "laterna: {}: {}; all ranks end; the same command resumes from the last checkpoint\n", kind,
        text);
    // Not with stdio, whose locks the stuck thread may hold.
    data::write_if_read(STDERR_FILENO, line);
    report_(kind, text);
  } else {
    std::this_thread::sleep_for(4 * kLook);
  }
  _exit(1);
}

}  // namespace laterna::dist
