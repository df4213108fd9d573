// Sees from a thread of its own, without a call of MPI, that the ranks of a run have come to a
// stand: a rank of this host died, or no rank did anything new for so many seconds. It says which
// rank, in which operation, layer and step, and ends its process: the launcher then ends the rest.
// It knows the ranks by the files that they keep of their heartbeats.
#pragma once

#include <condition_variable>
#include <filesystem>
#include <functional>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "dist/heartbeat.h"

namespace laterna::dist {

class Watchdog {
 public:
  /// Called once, on one rank alone, before all end. kind: "rank died" or "watchdog timeout".
  using Report = std::function<void(const std::string& kind, const std::string& text)>;

  /// `folder` holds every rank's heartbeat, of this start. `seconds`: how long nothing may change.
  Watchdog(std::filesystem::path folder, int rank, double seconds, Report report);
  /// Stops watching.
  ~Watchdog();
  Watchdog(const Watchdog&) = delete;
  Watchdog& operator=(const Watchdog&) = delete;

 private:
  void run();
  void look_for_the_dead();
  void look_for_a_stand();
  [[noreturn]] void fail(const std::string& kind, const std::string& text);

  std::filesystem::path folder_;
  int rank_;
  double seconds_;
  Report report_;
  std::vector<HeartbeatRecord> neighbours_;  // the other ranks of this host
  std::mutex mutex_;
  std::condition_variable stop_;
  bool stopping_ = false;
  std::thread thread_;  // last: it starts when everything else stands
};

/// The ranks' files in `folder`, by name.
std::vector<std::filesystem::path> heartbeat_files(const std::filesystem::path& folder);
/// What the ranks' files in `folder` say, in rank order; files that are none are left out.
std::vector<HeartbeatRecord> read_heartbeats(const std::filesystem::path& folder);
/// The file of a rank there.
std::filesystem::path heartbeat_file(const std::filesystem::path& folder, int rank);

/// Why nothing goes on, as a person would say it who reads what the ranks do.
std::string explain_stand(const std::vector<HeartbeatRecord>& ranks, double seconds);

}  // namespace laterna::dist
