#include "monitoring/telemetry/run_log.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <cmath>
#include <cstring>
#include <deque>
#include <fstream>
#include <map>
#include <nlohmann/json.hpp>
#include <optional>
#include <utility>

#include "data/error.h"
#include "data/files/durable_file.h"
#include "monitoring/telemetry/step_fields.h"

namespace laterna::monitoring {
namespace {

using nlohmann::json;

/// Sets the numbers of one line by their paths (see step_fields.h).
class Line {
 public:
  template <typename Number>
  void set(const std::string& path, const Labels& labels, Number value) {
    json* at = &line_;
    std::string above;  // the path so far, with the values of its labels
    for (std::size_t begin = 0; begin <= path.size();) {
      const std::size_t end = std::min(path.find('/', begin), path.size());
      std::string part = path.substr(begin, end - begin);
      if (part.front() == '[') {
        auto& places = places_[above];
        part = value_of(labels, part.substr(1, part.size() - 2));
        at = &(*at)[places.try_emplace(part, places.size()).first->second];
      } else {
        part = fill(part, labels);
        at = &(*at)[part];
      }
      above += part + "/";
      begin = end + 1;
    }
    *at = value;
  }
  json& json_line() { return line_; }

 private:
  static const std::string& value_of(const Labels& labels, const std::string& name) {
    return std::find_if(labels.begin(), labels.end(), [&](auto& l) { return l.first == name; })
        ->second;
  }

  json line_;
  std::map<std::string, std::map<std::string, std::size_t>> places_;  // in arrays, by path
};

json to_json(const StepRecord& r) {
  Line line;
  for_each_number(r, [&](const Field& field, const Labels& labels, auto value) {
    if (field.log) line.set(field.log, labels, value);
  });
  if (r.skipped) line.json_line()["skipped"] = true;
  return line.json_line();
}

json to_json(const EvaluationRecord& r) {
  json figures;
  for_each_figure(r, [&](const char* name, auto value) { figures[name] = value; });
  return figures;
}

bool is_evaluation(const std::string& line) {
  return line.find("\"evaluation\":") != std::string::npos;
}

/// Returns the step of a line without parsing all of it, or nothing when the line is damaged: a log
/// may have millions of lines, with a number for every rank.
std::optional<std::int64_t> step_in(const std::string& line) {
  constexpr std::string_view kKey = "\"step\":";
  const auto key = line.rfind(kKey);
  if (line.empty() || line.front() != '{' || line.back() != '}' || key == std::string::npos)
    return {};
  const char* digits = line.data() + key + kKey.size();
  while (*digits == ' ') ++digits;
  std::int64_t step = 0;
  const auto end = std::from_chars(digits, line.data() + line.size(), step);
  if (end.ec != std::errc()) return {};
  return step;
}

/// Parses a line; returns null when it is not a line of this log.
json parse(const std::string& text) {
  json line = json::parse(text, nullptr, false);
  const bool ours = line.is_object() && line.contains("step") && line["step"].is_number();
  return ours ? line : json();
}

double number(const json& line, const char* key) {  // null in JSON: not finite
  if (!line.contains(key)) return 0;
  return line[key].is_number() ? line[key].get<double>() : std::nan("");
}

StepRecord step_of(const json& line) {
  StepRecord record;
  record.step = line["step"].get<std::int64_t>();
  record.skipped = line.contains("skipped");
  for_each_scalar(record,
                  [&](const Field& field, double& value) { value = number(line, field.log); });
  return record;
}

EvaluationRecord evaluation_of(const json& line) {
  EvaluationRecord record;
  record.step = line["step"].get<std::int64_t>();
  for_each_figure(record, [&](const char* name, auto& value) {
    value = static_cast<std::decay_t<decltype(value)>>(number(line["evaluation"], name));
  });
  return record;
}

int open_to_append(const std::filesystem::path& path) {
  return open(path.c_str(), O_CREAT | O_WRONLY | O_APPEND | O_CLOEXEC, 0666);
}

}  // namespace

LogContent read_log(const std::filesystem::path& path, std::size_t recent) {
  std::ifstream file(path);
  LogContent content;
  std::deque<std::string> last;  // parsed at the end only: a log may have millions of steps
  bool is_first = true;
  for (std::string text; std::getline(file, text);) {
    if (!step_in(text)) {
      content.damaged += !file.eof();  // the last line may be half written
    } else if (is_evaluation(text)) {
      const json line = parse(text);
      content.damaged += line.is_null();
      if (!line.is_null()) content.evaluations.push_back(evaluation_of(line));
    } else {
      content.skipped += text.find("\"skipped\":true") != std::string::npos;
      const json first = std::exchange(is_first, false) ? parse(text) : json();
      if (!first.is_null()) content.first_loss = step_of(first).loss;
      last.push_back(std::move(text));
      if (last.size() > recent) last.pop_front();
    }
  }
  for (const auto& text : last) {
    const json line = parse(text);
    content.damaged += line.is_null();
    if (!line.is_null()) content.steps.push_back(step_of(line));
  }
  return content;
}

RunLog::RunLog(const std::filesystem::path& path, std::int64_t step) : path_(path) {
  std::ifstream old(path);
  std::int64_t read = 0;  // bytes
  for (std::string text; std::getline(old, text) && !old.eof();) {
    read += static_cast<std::int64_t>(text.size()) + 1;
    const auto at = step_in(text);
    const json evaluation = at && is_evaluation(text) ? parse(text) : json();
    if (!at || (is_evaluation(text) && evaluation.is_null())) {
      ++damaged_;
      continue;
    }
    if (*at > step) break;
    if (!evaluation.is_null()) evaluations_.push_back(evaluation_of(evaluation));
    size_ = read;
  }
  file_ = open_to_append(path);
  if (file_ < 0) {
    throw data::WriteError(
        fmt::format("{}: cannot be opened for appending: {}", path.string(), std::strerror(errno)));
  }
  if (ftruncate(file_, size_) != 0) {
    const int error = errno;
    close(file_);
    throw data::WriteError(
        fmt::format("{}: cannot be cut: {}", path.string(), std::strerror(error)));
  }
  data::sync_file(path);
  const auto folder = path.parent_path();
  data::sync_folder(folder.empty() ? "." : folder);
}

RunLog::~RunLog() { close(file_); }

/// Creates the file again where it is gone. A file that has taken its place may be another run's.
void RunLog::replace_if_gone() {
  std::error_code unknown;
  if (std::filesystem::exists(path_, unknown) || unknown) return;
  const int file = open(path_.c_str(), O_CREAT | O_EXCL | O_WRONLY | O_APPEND | O_CLOEXEC, 0666);
  if (file < 0) return note_trouble();
  use(file);
}

void RunLog::reopen() {
  const int file = open_to_append(path_);
  if (file < 0) return note_trouble();
  use(file);
}

void RunLog::use(int file) {
  close(file_);
  file_ = file;
  size_ = lseek(file_, 0, SEEK_END);
}

void RunLog::append(const StepRecord& record) { append_line(to_json(record).dump()); }
// An evaluation has a separate line, since it may end minutes after its step was logged.
void RunLog::append(const EvaluationRecord& record) {
  evaluations_.push_back(record);
  append_line(json{{"step", record.step}, {"evaluation", to_json(record)}}.dump());
}

void RunLog::hold(const std::string& why) {
  if (why == obstacle_) return;
  obstacle_ = why;
  write_waiting();
}

std::string to_text(const EvaluationRecord& record) { return to_json(record).dump(); }

void RunLog::append_line(std::string line) {
  waiting_ += std::move(line) + "\n";
  write_waiting();
}

// Writes complete lines only: a line that a full disk cuts short is removed and kept in memory.
void RunLog::write_waiting() {
  std::size_t done = 0;
  trouble_ = obstacle_;
  if (trouble_.empty()) replace_if_gone();
  while (trouble_.empty() && done < waiting_.size()) {
    const ssize_t written = ::write(file_, waiting_.data() + done, waiting_.size() - done);
    if (written < 0 && errno == EINTR) continue;
    if (written <= 0) {
      note_trouble();
      break;
    }
    done += static_cast<std::size_t>(written);
  }
  const std::size_t end = done == 0 ? std::string::npos : waiting_.rfind('\n', done - 1);
  const std::size_t kept = end == std::string::npos ? 0 : end + 1;
  size_ += static_cast<std::int64_t>(kept);
  if (kept < done && ftruncate(file_, size_) != 0) note_trouble();
  waiting_.erase(0, kept);
}

void RunLog::note_trouble() {
  trouble_ = fmt::format("{}: cannot be written: {}", path_.string(), std::strerror(errno));
}

}  // namespace laterna::monitoring
