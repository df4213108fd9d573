#include "launch/signals.h"

#include <fmt/format.h>
#include <unistd.h>

#include <atomic>
#include <csignal>
#include <cstring>
#include <thread>

#include "data/host.h"
#include "launch/stop_signals.h"

namespace laterna::launch {
namespace {

std::atomic<bool> asked_to_stop = false;

[[noreturn]] void end(int signal, const char* consequence) {
  data::write_if_read(STDERR_FILENO, fmt::format("\nlaterna: ended by a signal ({}): {}\n",
                                                 strsignal(signal), consequence));
  _exit(128 + signal);
}

void wait_for_signals(OnSignal reaction) {
  const sigset_t set = stop_signals();
  for (int signal = 0; sigwait(&set, &signal) == 0;) {
    if (reaction == OnSignal::end) end(signal, "what it was writing is not complete");
    const bool was_asked = asked_to_stop.exchange(true);
    if (signal != SIGINT) continue;
    if (was_asked) end(signal, "the steps since the last checkpoint are lost");
    data::write_if_read(STDERR_FILENO,
                        "\nstopping: the run is saved after the current micro-batch; Ctrl-C again "
                        "ends it at once and loses the steps since the last checkpoint\n");
  }
}

}  // namespace

void block_signals() {
  const sigset_t set = stop_signals();
  pthread_sigmask(SIG_BLOCK, &set, nullptr);
}

void take_signals(OnSignal reaction) { std::thread(wait_for_signals, reaction).detach(); }

bool stop_signalled() { return asked_to_stop; }

}  // namespace laterna::launch
