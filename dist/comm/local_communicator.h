// The back end of a single rank: sums and broadcasts leave the tensor as it is, gathers and
// all-to-alls copy. Every Work is already done when it is returned. Tensors may be on any device.
#pragma once

#include "dist/comm/communicator.h"

namespace laterna::dist {

/// Rank 0 of 1, without MPI: for a program that was not started by mpirun or srun, and for groups
/// of one rank on GPUs.
class LocalCommunicator final : public Communicator {
 public:
  int rank() const override { return 0; }
  int size() const override { return 1; }
  at::Device device() const override { return at::kCPU; }
  std::unique_ptr<Work> all_reduce(const at::Tensor& tensor) override;
  std::unique_ptr<Work> all_gather(const at::Tensor& mine, const at::Tensor& all) override;
  std::unique_ptr<Work> all_to_all_v(const at::Tensor& send,
                                     std::span<const std::int64_t> send_rows,
                                     const at::Tensor& receive,
                                     std::span<const std::int64_t> receive_rows) override;
  std::unique_ptr<Work> broadcast(const at::Tensor& tensor, int root) override;
  std::unique_ptr<Work> barrier() override;
};

}  // namespace laterna::dist
