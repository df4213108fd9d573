#include "launch/training/stop_request.h"

#include <ATen/ATen.h>

#include <fstream>

#include "data/files/durable_file.h"
#include "launch/signals.h"

namespace laterna::launch {
namespace {

std::filesystem::path file_in(const std::filesystem::path& run) { return run / "stop-requested"; }

}  // namespace

StopRequest::StopRequest(std::filesystem::path run, std::int64_t owner, dist::Communicator& control)
    : file_(file_in(run)), owner_(owner), control_(control) {}

bool StopRequest::is_in_folder() const {
  std::error_code none;
  if (!std::filesystem::exists(file_, none)) return false;
  std::int64_t owner = 0;
  return bool(std::ifstream(file_) >> owner) && owner == owner_;
}

bool StopRequest::agreed() {
  const bool mine = stop_signalled() || (control_.rank() == 0 && is_in_folder());
  const at::Tensor asked = at::full({1}, std::int64_t{mine}, at::kLong);
  control_.all_reduce(asked)->wait();
  return asked.item<std::int64_t>() > 0;
}

void StopRequest::obey() {
  if (agreed()) throw StopAgreed{};
}

void StopRequest::clear() {
  std::error_code none;
  if (is_in_folder()) std::filesystem::remove(file_, none);
}

void StopRequest::leave(const std::filesystem::path& run, std::int64_t owner) {
  data::write_file_durably(file_in(run), std::to_string(owner) + "\n");
}

}  // namespace laterna::launch
