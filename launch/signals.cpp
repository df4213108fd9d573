#include "launch/signals.h"

#include <fmt/format.h>
#include <unistd.h>

#include <atomic>
#include <csignal>
#include <cstring>
#include <thread>

namespace laterna::launch {
namespace {

std::atomic<bool> asked_to_stop = false;

sigset_t signals() {
  sigset_t set;
  sigemptyset(&set);
  for (const int signal : {SIGHUP, SIGINT, SIGTERM, SIGUSR1}) sigaddset(&set, signal);
  return set;
}

[[noreturn]] void end(int signal, const char* consequence) {
  fmt::print(stderr, "\nlaterna: ended by a signal ({}): {}\n", strsignal(signal), consequence);
  _exit(128 + signal);
}

void wait_for_signals(OnSignal reaction) {
  const sigset_t set = signals();
  for (int signal = 0; sigwait(&set, &signal) == 0;) {
    if (reaction == OnSignal::end) end(signal, "what it was writing is not complete");
    if (signal == SIGINT) {
      if (asked_to_stop) end(signal, "the steps since the last checkpoint are lost");
      fmt::print(stderr,
                 "\nstopping: the run is saved after the current micro-batch; Ctrl-C again "
                 "ends it at once and loses the steps since the last checkpoint\n");
    }
    asked_to_stop = true;
  }
}

}  // namespace

void block_signals() {
  const sigset_t set = signals();
  pthread_sigmask(SIG_BLOCK, &set, nullptr);
}

void take_signals(OnSignal reaction) { std::thread(wait_for_signals, reaction).detach(); }

bool stop_signalled() { return asked_to_stop; }

}  // namespace laterna::launch
