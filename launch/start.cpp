// The program that people start as `laterna`. It blocks the signals that training obeys and becomes
// laterna-program, which stands beside it: while that loads its libraries, which takes part of a
// second, a request to stop then waits instead of killing it (launch/signals.h).
#include <unistd.h>

#include <climits>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>

int main(int, char** argv) {
  sigset_t set;
  sigemptyset(&set);
  for (const int signal : {SIGHUP, SIGINT, SIGTERM, SIGUSR1}) sigaddset(&set, signal);
  sigprocmask(SIG_BLOCK, &set, nullptr);
  char self[PATH_MAX] = "";
  const ssize_t length = readlink("/proc/self/exe", self, sizeof(self) - 1);
  const std::string program = std::string(self, length > 0 ? std::size_t(length) : 0) + "-program";
  execv(program.c_str(), argv);
  std::fprintf(stderr, "laterna: %s cannot be started: %s; build or install Laterna again\n",
               program.c_str(), std::strerror(errno));
  return 1;
}
