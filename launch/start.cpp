// The program that people start as `laterna`. It blocks the signals that training obeys and becomes
// laterna-program, which stands beside it: while that loads its libraries, which takes part of a
// second, a request to stop then waits instead of killing it (launch/signals.h).
#include <linux/limits.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstring>

#include "launch/stop_signals.h"

int main(int, char** argv) {
  const sigset_t signals = laterna::launch::stop_signals();
  sigprocmask(SIG_BLOCK, &signals, nullptr);
  char program[PATH_MAX + 16] = "";
  const ssize_t length = readlink("/proc/self/exe", program, PATH_MAX);
  std::strcpy(program + (length > 0 ? length : 0), "-program");
  execv(program, argv);
  std::fprintf(stderr, "laterna: %s cannot be started: %s; build or install Laterna again\n",
               program, std::strerror(errno));
  return 1;
}
