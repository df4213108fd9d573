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

// mpirun kills the rest about a second after a death: what is to be said must be said before.
constexpr auto kLook = 50ms;

bool is_dead(int pid) { return kill(pid, 0) != 0 && errno == ESRCH; }

/// Held by a signal (SIGSTOP, a debugger); false for processes of other hosts.
bool is_stopped(int pid) {
  const char state = data::process_state(pid).state;
  return state == 'T' || state == 't';
}

std::string name_of(const HeartbeatRecord& r) {
  return fmt::format("rank {} ({}, pid {})", r.rank, r.host, r.pid);
}

/// The first rank to come here speaks for all.
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

std::string explain_stand(const std::vector<HeartbeatRecord>& ranks, double seconds) {
  std::string stuck, waiting;
  const auto add = [](std::string& list, const std::string& text) {
    list += (list.empty() ? "" : "; ") + text;
  };
  for (const auto& r : ranks) {
    if (r.ended) continue;
    const bool stopped = is_stopped(r.pid);
    if (stopped || r.peer == kNobody) {
      add(stuck, fmt::format("{}: {}{}", name_of(r), what_it_does(r),
                             stopped ? ", its process is stopped" : ""));
    } else {
      add(waiting, fmt::format("{}: {}", name_of(r), what_it_does(r)));
    }
  }
  if (stuck.empty())
    return fmt::format("no rank went on for {:g} s; they wait for each other: {}", seconds,
                       waiting);
  return fmt::format("no rank went on for {:g} s; stuck: {}{}", seconds, stuck,
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
  const auto looks_a_stand = static_cast<std::int64_t>(std::max(1.0, seconds_ / 20 / 0.05));
  std::unique_lock lock(mutex_);
  for (std::int64_t look = 1; !stop_.wait_for(lock, kLook, [this] { return stopping_; }); ++look) {
    lock.unlock();
    look_for_the_dead();
    if (look % looks_a_stand == 0) look_for_a_stand();
    lock.lock();
  }
}

void Watchdog::look_for_the_dead() {
  for (const auto& neighbour : neighbours_) {
    if (!is_dead(neighbour.pid)) continue;
    const auto last = Heartbeat::read(heartbeat_file(folder_, neighbour.rank));
    if (last && last->ended) continue;
    fail("rank died", fmt::format("{} died: {}", name_of(neighbour),
                                  last ? what_it_does(*last) : "its heartbeat cannot be read"));
  }
}

// One rank at work is enough: the others wait for it.
void Watchdog::look_for_a_stand() {
  const double limit = data::unix_time() - seconds_;
  const auto mine = Heartbeat::read(heartbeat_file(folder_, rank_));
  if (!mine || mine->ended || mine->since > limit) return;
  const auto all = read_heartbeats(folder_);
  const bool goes_on = std::any_of(all.begin(), all.end(), [&](const auto& record) {
    return !record.ended && record.since > limit;
  });
  if (!goes_on) fail("watchdog timeout", explain_stand(all, seconds_));
}

void Watchdog::fail(const std::string& kind, const std::string& text) {
  if (is_first(folder_)) {
    const std::string line = fmt::format(
        "laterna: {}: {}; all ranks end; the same command goes on from the last checkpoint\n", kind,
        text);
    // Not by stdio: the thread that is stuck may hold its locks.
    [[maybe_unused]] const ssize_t written = write(STDERR_FILENO, line.data(), line.size());
    report_(kind, text);
  } else {
    std::this_thread::sleep_for(4 * kLook);
  }
  _exit(1);
}

}  // namespace laterna::dist
