// Signals are taken by a thread that does nothing else. No thread that computes may run a signal
// handler: oneDNN's generated matrix products use the stack pointer as an ordinary register, so the
// kernel would write the handler's frame over live data
// (github.com/uxlfoundation/oneDNN/issues/4845).
#pragma once

namespace laterna::launch {

/// Blocks SIGHUP, SIGINT, SIGTERM and SIGUSR1 in this thread and in those that it will start.
/// Called first of all in main(); a signal that arrives from then on waits for take_signals().
void block_signals();

enum class OnSignal {
  end,  // the process ends at once, with a message and status 128 + the signal's number
  stop  // stop_signalled() becomes true; after that a second SIGINT ends the process
};

/// Starts the thread that takes the blocked signals from now on. Call it once.
void take_signals(OnSignal reaction);

/// Returns whether this process was asked to stop by a signal.
bool stop_signalled();

}  // namespace laterna::launch
