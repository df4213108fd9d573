// Detects from its own thread, without calling MPI, that the ranks of a run hang: a rank of this
// host died, or no rank made progress for a given number of seconds. The watchdog reports which
// rank, in which operation, layer and step, and ends its process; the launcher then ends the other
// ranks. The state of the ranks is read from their heartbeat files: of all ranks only once this
// rank itself is late, and only by one rank a host. Time is that of this watchdog's own monotonic
// clock, and starts again after the process was suspended.
#pragma once

#include <chrono>
#include <condition_variable>
#include <filesystem>
#include <functional>
#include <map>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "dist/heartbeat.h"

namespace laterna::dist {

class Watchdog {
 public:
  /// Called once, on one rank only, before all ranks end. kind: "rank died" or "watchdog timeout".
  using Report = std::function<void(const std::string& kind, const std::string& text)>;

  /// Starts watching. `folder` holds every rank's heartbeat file of this start; `seconds`: how long
  /// the ranks may make no progress.
  Watchdog(std::filesystem::path folder, int rank, double seconds, Report report);
  /// Stops watching.
  ~Watchdog();
  Watchdog(const Watchdog&) = delete;
  Watchdog& operator=(const Watchdog&) = delete;

 private:
  using Clock = std::chrono::steady_clock;

  void run();
  void look_for_the_dead();
  void check_progress();
  bool reads_for_this_host() const;
  [[noreturn]] void fail(const std::string& kind, const std::string& text);

  std::filesystem::path folder_;
  int rank_;
  double seconds_;
  Report report_;
  std::vector<HeartbeatRecord> neighbours_;  // the other ranks of this host
  Clock::time_point last_check_;
  std::uint64_t my_progress_ = 0;
  Clock::time_point mine_since_;               // since when my_progress_ has not changed
  std::map<int, std::uint64_t> all_progress_;  // by rank; empty while this rank makes progress
  Clock::time_point all_since_;                // since when all_progress_ has not changed
  std::mutex mutex_;
  std::condition_variable stop_;
  bool stopping_ = false;
  std::thread thread_;  // last: starts when all other members are initialised
};

/// Returns the ranks' heartbeat files in `folder`, sorted by name.
std::vector<std::filesystem::path> heartbeat_files(const std::filesystem::path& folder);
/// Returns the ranks' heartbeats in `folder`, in rank order; files that are not heartbeats are left
/// out.
std::vector<HeartbeatRecord> read_heartbeats(const std::filesystem::path& folder);
/// Returns the path of a rank's heartbeat file in `folder`.
std::filesystem::path heartbeat_file(const std::filesystem::path& folder, int rank);

/// Returns a message that explains why no rank made progress for `seconds`: which ranks are stuck,
/// and which wait for other ranks.
std::string describe_hang(const std::vector<HeartbeatRecord>& ranks, double seconds);

}  // namespace laterna::dist
