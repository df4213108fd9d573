#include "monitoring/telemetry/warnings.h"

#include <fcntl.h>
#include <unistd.h>

#include <fstream>
#include <nlohmann/json.hpp>

#include "data/host.h"

namespace laterna::monitoring {

using nlohmann::json;

void append_warning(const std::filesystem::path& file, const std::string& kind,
                    const std::string& text) {
  const json warning{{"time", data::unix_time()}, {"kind", kind}, {"text", text}};
  // A path in the text may not be valid UTF-8.
  const std::string line = warning.dump(-1, ' ', false, json::error_handler_t::replace) + "\n";
  const int to = open(file.c_str(), O_CREAT | O_APPEND | O_WRONLY | O_CLOEXEC, 0644);
  if (to < 0) return;
  [[maybe_unused]] const ssize_t written = write(to, line.data(), line.size());
  close(to);
}

std::vector<Warning> read_warnings(const std::filesystem::path& file) {
  std::vector<Warning> warnings;
  std::ifstream lines(file);
  for (std::string text; std::getline(lines, text);) {
    const json line = json::parse(text, nullptr, false);
    try {
      warnings.push_back({line.at("time"), line.at("kind"), line.at("text")});
    } catch (const json::exception&) {  // a damaged line costs that line
    }
  }
  return warnings;
}

}  // namespace laterna::monitoring
