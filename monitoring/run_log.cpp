#include "monitoring/run_log.h"

#include <fmt/format.h>

#include <cerrno>
#include <cstring>
#include <nlohmann/json.hpp>
#include <string>

#include "data/durable_file.h"
#include "data/error.h"

namespace laterna::monitoring {
namespace {

using nlohmann::json;

std::string to_line(const StepRecord& r) {
  json line = {{"step", r.step},
               {"loss", r.loss},
               {"grad_norm", r.grad_norm},
               {"learning_rate", r.learning_rate},
               {"samples_per_second", r.samples_per_second},
               {"seconds", r.seconds},
               {"data_wait_seconds", r.data_wait_seconds},
               {"communication_wait_seconds", r.communication_wait_seconds}};
  if (!r.visits.empty()) line["visits"] = r.visits;
  for (const auto& leg : r.exchange) {
    line["exchange"][leg.name] = {
        {"blocks", leg.blocks}, {"bytes", leg.bytes}, {"wait_seconds", leg.wait_seconds}};
  }
  if (!r.exchange.empty()) line["imbalance"] = r.imbalance;
  return line.dump();
}

std::optional<StepRecord> from_line(const std::string& text) {
  const json line = json::parse(text, nullptr, false);
  if (!line.is_object() || !line.contains("step") || !line["step"].is_number()) return {};
  const auto number = [&](const char* key) {
    return line.contains(key) && line[key].is_number() ? line[key].get<double>() : 0.0;
  };
  StepRecord record;  // what a summary needs
  record.step = line["step"].get<std::int64_t>();
  record.loss = number("loss");
  record.grad_norm = number("grad_norm");
  record.learning_rate = number("learning_rate");
  record.samples_per_second = number("samples_per_second");
  record.seconds = number("seconds");
  record.data_wait_seconds = number("data_wait_seconds");
  record.communication_wait_seconds = number("communication_wait_seconds");
  return record;
}

}  // namespace

std::vector<StepRecord> read_log(const std::filesystem::path& path) {
  std::ifstream file(path);
  std::vector<StepRecord> records;
  std::string text;
  while (std::getline(file, text)) {
    const auto record = from_line(text);
    if (!record) break;
    records.push_back(*record);
  }
  return records;
}

RunLog::RunLog(const std::filesystem::path& path, std::int64_t step) : path_(path) {
  std::string kept;
  std::ifstream old(path);
  for (std::string text; std::getline(old, text);) {
    const auto record = from_line(text);
    if (!record || record->step > step) break;
    kept += text + "\n";
  }
  old.close();
  data::write_file_durably(path, kept);
  file_.open(path, std::ios::app);
}

void RunLog::append(const StepRecord& record) {
  file_ << to_line(record) << '\n' << std::flush;
  if (!file_) {
    throw data::WriteError(
        fmt::format("{}: cannot be written: {}; make room and start again: the "
                    "run goes on from its last checkpoint",
                    path_.string(), std::strerror(errno)));
  }
}

}  // namespace laterna::monitoring
