// What every folder asks of the system: its clocks, its name, a process's state. Header-only, so
// that it is no dependency of anybody.
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

/// A process of this host as /proc shows it.
struct ProcessState {
  std::string name;  // of the program, its first 15 characters
  char state = '?';  // R, S, D, T (stopped), t (traced), Z (zombie), X (dead); '?': no such process
};
inline ProcessState process_state(int pid) {
  std::ifstream file("/proc/" + std::to_string(pid) + "/stat");
  std::string line;
  std::getline(file, line);  // pid (name) state ...; a name may hold anything
  const auto begin = line.find('('), end = line.rfind(") ");
  if (begin == std::string::npos || end == std::string::npos) return {};
  return {line.substr(begin + 1, end - begin - 1), line[end + 2]};
}

}  // namespace laterna::data
