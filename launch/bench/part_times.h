// Measures how long each part of a step takes: the scopes named in model/probes/part.h, seen
// through LibTorch's observers (at::RecordFunction).
#pragma once

#include <ATen/record_function.h>

#include <chrono>
#include <map>
#include <string>

namespace laterna::launch {

/// During its lifetime, adds up the seconds that this process spends in each part. Throws
/// std::logic_error when another instance exists.
class PartTimes {
 public:
  PartTimes();
  ~PartTimes();
  PartTimes(const PartTimes&) = delete;
  PartTimes& operator=(const PartTimes&) = delete;

  const std::map<std::string, double>& seconds() const { return seconds_; }

 private:
  struct Start : at::ObserverContext {
    std::chrono::steady_clock::time_point at = std::chrono::steady_clock::now();
  };
  static std::unique_ptr<at::ObserverContext> begin(const at::RecordFunction& part);
  static void end(const at::RecordFunction& part, at::ObserverContext* start);

  std::map<std::string, double> seconds_;
  at::CallbackHandle handle_;
};

}  // namespace laterna::launch
