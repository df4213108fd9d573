// What a rank is doing right now, kept where another process can read it even after the rank was
// killed: one small file per rank, mapped into memory, so that an update is a few stores and the
// kernel keeps the latest ones whatever happens to the process. `laterna inspect` reads the files.
#pragma once

#include <atomic>
#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>

namespace laterna::dist {

inline constexpr int kNoPeer = -1, kSeveralPeers = -2;  // for `peer`: no rank, several ranks

/// A rank's heartbeat as a reader finds it.
struct HeartbeatRecord {
  int rank = 0;
  int pid = 0;
  std::string host;
  bool ended = false;       // normally
  std::int64_t step = 0;    // of training, from 1; 0: before the first
  std::string operation;    // "forward", "combine", ...
  std::int64_t layer = -1;  // -1: no layer
  int peer = kNoPeer;       // rank of the world that this rank waits for, or kNoPeer, kSeveralPeers
  double since = 0;         // Unix time at which the operation began or last made progress
  std::uint64_t progress = 0;  // grows with every operation and every progress of one
};

/// Returns a text such as "step 12, combine of layer 3, waiting for rank 1".
std::string describe(const HeartbeatRecord& record);

/// Writes a rank's heartbeat, from one thread at a time. Without a file (the default) nothing is
/// recorded.
class Heartbeat {
 public:
  Heartbeat() = default;
  ~Heartbeat();
  Heartbeat(const Heartbeat&) = delete;
  Heartbeat& operator=(const Heartbeat&) = delete;

  /// Creates or overwrites `path` and records the heartbeat there from now on. Throws
  /// std::runtime_error naming the file and the reason.
  void open(const std::filesystem::path& path, int rank, const std::string& host);

  /// Reports `operation` (a string literal) until the scope ends, then the enclosing operation
  /// again.
  class [[nodiscard]] Scope {
   public:
    Scope(Heartbeat& heartbeat, const char* operation, std::int64_t layer);
    ~Scope();
    Scope(const Scope&) = delete;
    Scope& operator=(const Scope&) = delete;

   private:
    Heartbeat& heartbeat_;
    const char* outer_operation_;
    std::int64_t outer_layer_;
  };
  Scope enter(const char* operation, std::int64_t layer = -1) { return {*this, operation, layer}; }
  void set_step(std::int64_t step);
  /// Records that the current operation, a long one, makes progress.
  void touch();
  /// Records that this rank waits for a rank of the world, for several ranks (kSeveralPeers) or no
  /// longer for any (kNoPeer).
  void set_peer(int peer);
  /// Records that the rank ended normally.
  void end();

  /// Returns the heartbeat in a file, or nullopt when the file holds none.
  static std::optional<HeartbeatRecord> read(const std::filesystem::path& path);

 private:
  struct Page;  // the file's content

  template <typename Change>
  void write(const Change& change);
  void set(const char* operation, std::int64_t layer);

  Page* page_ = nullptr;
  const char* operation_ = "starting";
  std::int64_t layer_ = -1;
};

}  // namespace laterna::dist
