#include "launch/training/stop_request.h"

#include <ATen/ATen.h>

#include "data/files/durable_file.h"
#include "launch/signals.h"

namespace laterna::launch {
namespace {

std::filesystem::path file_in(const std::filesystem::path& run) { return run / "stop-requested"; }

}  // namespace

StopRequest::StopRequest(std::filesystem::path run, dist::Communicator& control)
    : file_(file_in(run)), control_(control) {}

bool StopRequest::agreed() {
  std::int64_t mine = stop_signalled();
  std::error_code none;
  if (control_.rank() == 0 && std::filesystem::exists(file_, none)) mine = 1;
  const at::Tensor asked = at::full({1}, mine, at::kLong);
  control_.all_reduce(asked)->wait();
  return asked.item<std::int64_t>() > 0;
}

void StopRequest::obey() {
  if (agreed()) throw StopAgreed{};
}

void StopRequest::clear() {
  std::error_code none;
  std::filesystem::remove(file_, none);
}

void StopRequest::leave(const std::filesystem::path& run) {
  data::write_file_durably(file_in(run), "");
}

}  // namespace laterna::launch
