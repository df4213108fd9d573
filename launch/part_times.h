// How long each part of a step takes (model/part.h), as LibTorch's observers see it.
#pragma once

#include <ATen/record_function.h>

#include <chrono>
#include <map>
#include <string>

namespace laterna::launch {

/// While it lives, adds up the seconds of each part that this process works on. One at a time.
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
