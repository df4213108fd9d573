#include "launch/bench/part_times.h"

#include <stdexcept>

namespace laterna::launch {
namespace {

PartTimes* watching = nullptr;  // the callbacks are plain functions, without an object

}  // namespace

PartTimes::PartTimes() {
  if (watching) throw std::logic_error("PartTimes: another instance is active");
  watching = this;
  handle_ = at::addGlobalCallback(
      at::RecordFunctionCallback(&begin, &end).scopes({at::RecordScope::USER_SCOPE}));
}

PartTimes::~PartTimes() {
  at::removeCallback(handle_);
  watching = nullptr;
}

std::unique_ptr<at::ObserverContext> PartTimes::begin(const at::RecordFunction&) {
  return std::make_unique<Start>();
}

void PartTimes::end(const at::RecordFunction& part, at::ObserverContext* start) {
  const std::chrono::duration<double> taken =
      std::chrono::steady_clock::now() - static_cast<const Start*>(start)->at;
  watching->seconds_[part.name()] += taken.count();
}

}  // namespace laterna::launch
