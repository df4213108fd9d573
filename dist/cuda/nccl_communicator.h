// CUDA tensors over NCCL. The collectives of a communicator run on its own stream, behind the work
// that the caller's current stream holds when they are posted; a Work waits by making the current
// stream wait, so the host does not block. Sums have the same bits on all ranks and in every run
// (NCCL forms each element along one path), but not those of a sum in rank order.
//
// Communicators are non-blocking: NCCL's calls return at once, and every call and every test polls
// for errors, so that a peer that died becomes an exception and not a hang. Two communicators of a
// GPU must be used in compatible orders on all ranks, or their kernels may wait for each other: the
// trainer runs every micro-batch on every rank, even without a sample there, so that autograd
// reaches exchanges and reducers in the same order on all ranks.
#pragma once

#include <ATen/cuda/CUDAEvent.h>
#include <c10/cuda/CUDAStream.h>
#include <nccl.h>

#include <functional>
#include <string>
#include <vector>

#include "dist/comm/communicator.h"
#include "dist/cuda_backend.h"

namespace laterna::dist {

class NcclCommunicator final : public Communicator {
 public:
  /// Joins as rank `rank` of `size`, on the current CUDA device. Collective.
  NcclCommunicator(const NcclId& id, int rank, int size);
  /// Frees NCCL's memory. Local: does not communicate with the other ranks.
  ~NcclCommunicator() override;
  NcclCommunicator(const NcclCommunicator&) = delete;
  NcclCommunicator& operator=(const NcclCommunicator&) = delete;

  int rank() const override { return rank_; }
  int size() const override { return size_; }
  at::Device device() const override { return stream_.device(); }
  std::unique_ptr<Work> all_reduce(const at::Tensor& tensor) override;
  std::unique_ptr<Work> all_gather(const at::Tensor& mine, const at::Tensor& all) override;
  std::unique_ptr<Work> all_to_all_v(const at::Tensor& send,
                                     std::span<const std::int64_t> send_rows,
                                     const at::Tensor& receive,
                                     std::span<const std::int64_t> receive_rows) override;
  std::unique_ptr<Work> broadcast(const at::Tensor& tensor, int root) override;
  std::unique_ptr<Work> barrier() override;

  /// Throws std::runtime_error when NCCL has met an error since; the message names `operation`.
  void check_health(const char* operation);

 private:
  /// Throws unless `result` is success or, for non-blocking calls, in progress.
  void check(ncclResult_t result, const char* operation) const;
  /// Polls until the posted operations are launched.
  void settle(const char* operation);
  /// Runs `post` in an NCCL group on our stream; `tensors` are kept until the Work is done.
  std::unique_ptr<Work> launch(const char* operation, std::vector<at::Tensor> tensors,
                               const std::function<void(cudaStream_t)>& post);

  int rank_, size_;
  c10::cuda::CUDAStream stream_;
  ncclComm_t communicator_ = nullptr;
};

}  // namespace laterna::dist
