// A communicator moves tensors between ranks. The whole interface is five collectives, each of
// which returns at once with a Work that tells when its result is valid. Back ends:
// LocalCommunicator (one rank, no MPI), MpiCommunicator (CPU tensors over MPI), NcclCommunicator
// (CUDA tensors over NCCL).
//
// Rules of every back end: all ranks call the same collectives in the same order, from one thread
// at a time, but may wait for them in any order; tensors are contiguous and must not be touched
// until the Work is done (a Work holds references to them); a sum has the same bits on every rank
// and in every run (over MPI it is formed in rank order). Invalid arguments throw
// std::invalid_argument before anything is sent.
//
// When is a result valid? CPU tensors: when wait() returns. CUDA tensors: for work that the current
// stream is given after wait() returned; the host does not block.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/core/Device.h>

#include <cstdint>
#include <memory>
#include <span>

namespace laterna::dist {

/// A collective in progress; its communicator must outlive it. Destroying a Work that is not done
/// is a programming error and aborts, except while an exception unwinds: then its tensors are kept
/// alive for the messages still in progress.
class Work {
 public:
  virtual ~Work() = default;
  /// Advances the collective without blocking; returns true when the result is valid.
  virtual bool test() = 0;
  /// Waits until the result is valid; for CUDA tensors the current stream waits, not the host.
  /// Throws std::runtime_error naming the operation.
  virtual void wait() = 0;
};

/// A group of ranks. Moves accept all dtypes that ATen stores contiguously; sums accept float32,
/// float64 and int64.
class Communicator {
 public:
  virtual ~Communicator() = default;
  virtual int rank() const = 0;
  virtual int size() const = 0;
  /// The device of the tensors that the communicator moves.
  virtual at::Device device() const = 0;

  /// Replaces `tensor` (any shape, the same on all ranks) by the sum over ranks.
  virtual std::unique_ptr<Work> all_reduce(const at::Tensor& tensor) = 0;
  /// Copies `mine` [...] of every rank into `all` [size, ...mine], in rank order.
  virtual std::unique_ptr<Work> all_gather(const at::Tensor& mine, const at::Tensor& all) = 0;
  /// Sends rows (first dimension) of `send` in rank order, `send_rows[r]` of them to rank r, and
  /// receives `receive_rows[r]` rows from rank r into `receive`, in rank order. All rows have one
  /// shape.
  virtual std::unique_ptr<Work> all_to_all_v(const at::Tensor& send,
                                             std::span<const std::int64_t> send_rows,
                                             const at::Tensor& receive,
                                             std::span<const std::int64_t> receive_rows) = 0;
  /// Replaces `tensor` by rank `root`'s.
  virtual std::unique_ptr<Work> broadcast(const at::Tensor& tensor, int root) = 0;
  virtual std::unique_ptr<Work> barrier() = 0;
};

}  // namespace laterna::dist
