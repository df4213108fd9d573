// Progress of long work for a person to read: on a terminal one line that is rewritten, elsewhere a
// plain line every ten seconds. Nobody need read it: what a stopped terminal (Ctrl-S) or a full
// pipe does not take is not printed, and the program goes on.
#pragma once

#include <chrono>
#include <cstdint>
#include <cstdio>
#include <string>

namespace laterna::monitoring {

class Progress {
 public:
  /// `what` is printed before the count; `total` has the unit of update()'s `done`; `start` is the
  /// part done earlier (in a resumed run), which the estimate of the time left disregards.
  Progress(std::string what, std::int64_t total, std::int64_t start = 0);
  /// Shows the state, on a terminal at most ten times a second; `facts` are printed after the
  /// count.
  void update(std::int64_t done, const std::string& facts);
  /// Ends the line so that something else can be printed.
  void interrupt();
  /// Shows the final state and ends the line.
  void finish();

 private:
  using Clock = std::chrono::steady_clock;
  void show();

  std::string what_;
  std::int64_t total_, start_, done_;
  std::string facts_;
  bool terminal_, on_line_ = false;
  Clock::time_point began_, shown_;
};

/// Prints to stdout or stderr and flushes, unless the reader takes nothing now.
void print_if_read(std::FILE* to, const std::string& text);

/// Returns whether standard output is a terminal. Under mpirun that of mpirun counts, since mpirun
/// gives its ranks a pseudo-terminal in any case.
bool on_terminal();

}  // namespace laterna::monitoring
