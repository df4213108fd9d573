// What a rank is doing right now, where another process can read it, also after the rank was
// killed: one small file a rank, mapped into memory, so that an update is a few stores and the
// kernel keeps the last of them whatever happens to the process. `laterna inspect` reads it.
#pragma once

#include <atomic>
#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>

namespace laterna::dist {

inline constexpr int kNobody = -1, kSomebody = -2;  // in place of a peer's rank

/// A rank's state as a reader finds it.
struct HeartbeatRecord {
  int rank = 0;
  int pid = 0;
  std::string host;
  bool ended = false;       // in order
  std::int64_t step = 0;    // of training, from 1; 0: before the first
  std::string operation;    // "forward", "exchange of sums", ...
  std::int64_t layer = -1;  // -1: of none
  int peer = kNobody;       // the rank of the world that it waits for
  double since = 0;  // Unix time at which the operation began, or last showed that it goes on
};

/// "step 12, exchange of sums of layer 3, waiting for rank 1".
std::string what_it_does(const HeartbeatRecord& record);

/// Written by one thread at a time. Without a file (the default) it keeps nothing.
class Heartbeat {
 public:
  Heartbeat() = default;
  ~Heartbeat();
  Heartbeat(const Heartbeat&) = delete;
  Heartbeat& operator=(const Heartbeat&) = delete;

  /// Begins to keep it in `path`, anew. Throws std::runtime_error naming the file and the reason.
  void open(const std::filesystem::path& path, int rank, const std::string& host);

  /// The operation until the scope ends; then the one around it again. `operation`: a literal.
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
  /// The operation is long, but goes on.
  void touch();
  /// Waits for that rank of the world, for kSomebody, or for kNobody any more.
  void waits_for(int peer);
  /// The rank ends in order.
  void end();

  /// Nothing when it is no such file.
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
