// Small queries to the system that all folders use: clocks, host name, state of a process.
// Header-only, so that using it does not require linking to data/.
#pragma once

#include <unistd.h>

#include <chrono>
#include <fstream>
#include <string>

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

/// State of a process on this host, from /proc.
struct ProcessState {
  std::string name;  // program name, at most 15 characters
  char state = '?';  // R, S, D, T (stopped), t (traced), Z (zombie), X (dead); '?': no such process
};
inline ProcessState process_state(int pid) {
  std::ifstream file("/proc/" + std::to_string(pid) + "/stat");
  std::string line;
  std::getline(file, line);  // "pid (name) state ..."; a name may contain ") "
  const auto begin = line.find('('), end = line.rfind(") ");
  if (begin == std::string::npos || end == std::string::npos) return {};
  return {line.substr(begin + 1, end - begin - 1), line[end + 2]};
}

}  // namespace laterna::data
