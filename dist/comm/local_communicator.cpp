#include "dist/comm/local_communicator.h"

#include "dist/comm/collective_arguments.h"

namespace laterna::dist {
namespace {

class DoneWork final : public Work {
 public:
  bool test() override { return true; }
  void wait() override {}
};

// Autograd does not record a move, as between ranks; callers that need a backward pass define it.
void copy_outside_autograd(const at::Tensor& from, const at::Tensor& to) {
  const at::NoGradGuard no_grad;
  to.view_as(from).copy_(from);
}

}  // namespace

std::unique_ptr<Work> LocalCommunicator::all_reduce(const at::Tensor& tensor) {
  check_all_reduce(tensor);
  return std::make_unique<DoneWork>();
}

std::unique_ptr<Work> LocalCommunicator::all_gather(const at::Tensor& mine, const at::Tensor& all) {
  check_all_gather(mine, all, size());
  copy_outside_autograd(mine, all);
  return std::make_unique<DoneWork>();
}

std::unique_ptr<Work> LocalCommunicator::all_to_all_v(const at::Tensor& send,
                                                      std::span<const std::int64_t> send_rows,
                                                      const at::Tensor& receive,
                                                      std::span<const std::int64_t> receive_rows) {
  check_all_to_all_v(send, send_rows, receive, receive_rows, size());
  copy_outside_autograd(send, receive);
  return std::make_unique<DoneWork>();
}

std::unique_ptr<Work> LocalCommunicator::broadcast(const at::Tensor& tensor, int root) {
  check_broadcast(tensor, root, size());
  return std::make_unique<DoneWork>();
}

std::unique_ptr<Work> LocalCommunicator::barrier() { return std::make_unique<DoneWork>(); }

}  // namespace laterna::dist
