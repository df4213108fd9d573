// How far long work is, for a person: one line that is rewritten on a terminal, a plain line now
// and then everywhere else.
#pragma once

#include <chrono>
#include <cstdint>
#include <string>

namespace laterna::monitoring {

class Progress {
 public:
  /// `what` stands before the count; `total` in the same unit as update()'s `done`; `start`: what
  /// was done before (a resumed run), for the time left.
  Progress(std::string what, std::int64_t total, std::int64_t start = 0);
  /// Shows the state if the last showing is long enough ago. `facts` follow the count.
  void update(std::int64_t done, const std::string& facts);
  /// Ends the line for something else to be printed.
  void interrupt();
  /// Shows the last state and ends the line.
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

/// Whether a person watches what this process prints: standard output is a terminal, that of mpirun
/// where mpirun started us (it hands its ranks a terminal of their own in any case).
bool on_terminal();

}  // namespace laterna::monitoring
