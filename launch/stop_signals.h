// The signals that ask a training to stop. No thread that computes may take them: see signals.h.
#pragma once

#include <csignal>

namespace laterna::launch {

inline constexpr int kStopSignals[] = {SIGHUP, SIGINT, SIGTERM, SIGUSR1};

/// Returns the set of kStopSignals.
inline sigset_t stop_signals() {
  sigset_t set;
  sigemptyset(&set);
  for (const int signal : kStopSignals) sigaddset(&set, signal);
  return set;
}

}  // namespace laterna::launch
