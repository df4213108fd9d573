// Small queries to the system that all folders use: clocks, host name, state of a process.
// Header-only, so that using it does not require linking to data/.
#pragma once

#include <poll.h>
#include <unistd.h>

#include <chrono>
#include <cstdint>
#include <fstream>
#include <sstream>
#include <string>
#include <string_view>

namespace laterna::data {

/// Unix time in seconds.
inline double unix_time() {
  return std::chrono::duration<double>(std::chrono::system_clock::now().time_since_epoch()).count();
}

inline double seconds_since(std::chrono::steady_clock::time_point start) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

inline std::string host_name() {
  char name[256] = "";
  gethostname(name, sizeof(name) - 1);
  return name;
}

/// Writes a short text to `file`, unless its reader takes nothing now: a stopped terminal or a full
/// pipe, on which write() would block.
inline void write_if_read(int file, std::string_view text) {
  pollfd reader{file, POLLOUT, 0};
  if (poll(&reader, 1, 0) != 1 || (reader.revents & POLLOUT) == 0) return;
  [[maybe_unused]] const ssize_t written = write(file, text.data(), text.size());
}

/// State of a process on this host, from /proc.
struct ProcessState {
  std::string name;  // program name, at most 15 characters
  char state = '?';  // R, S, D, T (stopped), t (traced), Z (zombie), X (dead); '?': no such process
  std::int64_t started = 0;  // clock ticks after the boot: tells it from others with its number
  bool has_ended() const { return state == '?' || state == 'Z' || state == 'X'; }
};
inline ProcessState process_state(int pid) {
  std::ifstream file("/proc/" + std::to_string(pid) + "/stat");
  std::string line;
  std::getline(file, line);  // "pid (name) state ..."; a name may contain ") "
  const auto begin = line.find('('), end = line.rfind(") ");
  if (begin == std::string::npos || end == std::string::npos) return {};
  ProcessState process{line.substr(begin + 1, end - begin - 1), line[end + 2]};
  std::istringstream others(line.substr(end + 3));
  std::string skipped;
  for (int field = 4; field < 22; ++field) others >> skipped;
  others >> process.started;
  return process;
}

}  // namespace laterna::data
