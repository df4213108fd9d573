#include "monitoring/telemetry/progress.h"

#include <fmt/format.h>
#include <poll.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <filesystem>

#include "data/host.h"

namespace laterna::monitoring {
namespace {

constexpr auto kTerminalInterval = std::chrono::milliseconds(100);
constexpr auto kPlainInterval = std::chrono::seconds(10);
constexpr int kBarWidth = 24;

std::string clock_text(double seconds) {
  const auto s = static_cast<long>(std::min(seconds, 3.6e7) + 0.5);
  if (s >= 3600) return fmt::format("{}:{:02}:{:02}", s / 3600, s / 60 % 60, s % 60);
  return fmt::format("{}:{:02}", s / 60, s % 60);
}

}  // namespace

void print_if_read(std::FILE* to, const std::string& text) {
  pollfd reader{fileno(to), POLLOUT, 0};
  if (poll(&reader, 1, 0) != 1 || (reader.revents & POLLOUT) == 0) return;
  fmt::print(to, "{}", text);
  std::fflush(to);
}

bool on_terminal() {
  if (!std::getenv("OMPI_COMM_WORLD_RANK")) return isatty(STDOUT_FILENO) == 1;
  std::error_code none;
  const auto target =
      std::filesystem::read_symlink(fmt::format("/proc/{}/fd/1", getppid()), none).string();
  return target.starts_with("/dev/pts/") || target.starts_with("/dev/tty");
}

Progress::Progress(std::string what, std::int64_t total, std::int64_t start)
    : what_(std::move(what)),
      total_(total),
      start_(start),
      done_(start),
      terminal_(on_terminal()),
      began_(Clock::now()),
      shown_(terminal_ ? Clock::time_point() : Clock::now()) {}

void Progress::update(std::int64_t done, const std::string& facts) {
  done_ = done;
  facts_ = facts;
  const auto now = Clock::now();
  if (now - shown_ < (terminal_ ? Clock::duration(kTerminalInterval) : kPlainInterval)) return;
  shown_ = now;
  show();
}

void Progress::interrupt() {
  if (on_line_) print_if_read(stdout, "\n");
  on_line_ = false;
}

void Progress::finish() {
  show();
  interrupt();
}

void Progress::show() {
  const double elapsed = data::seconds_since(began_);
  std::string text = fmt::format("{} {}/{}  {}", what_, done_, total_, facts_);
  if (done_ > start_ && done_ < total_) {
    text += fmt::format("  {} left",
                        clock_text(elapsed / double(done_ - start_) * double(total_ - done_)));
  } else {
    text += fmt::format("  {}", clock_text(elapsed));
  }
  if (terminal_) {
    const auto shown = std::clamp<std::int64_t>(done_, 0, total_);
    const auto filled = static_cast<int>(kBarWidth * shown / std::max<std::int64_t>(total_, 1));
    print_if_read(stdout, fmt::format("\r\033[K[{}{}] {}", std::string(filled, '#'),
                                      std::string(kBarWidth - filled, '.'), text));
    on_line_ = true;
  } else {
    print_if_read(stdout, text + "\n");
  }
}

}  // namespace laterna::monitoring
