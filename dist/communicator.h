// A communicator moves tensors between ranks. This is the whole interface: five collectives, each
// of which returns at once with a Work that says when its result is valid. Back ends:
// LocalCommunicator (one rank, no MPI), MpiCommunicator (CPU tensors over MPI), NcclCommunicator
// (CUDA tensors over NCCL).
//
// Rules that every back end keeps: all ranks call the same collectives in the same order, from one
// thread at a time, but wait for them in any order; tensors are contiguous and stay untouched until
// the Work says done (a Work holds references to them); a sum has the same bits on every rank and
// in every run (over MPI it is formed in rank order). Arguments that do not fit throw
// std::invalid_argument before anything is sent.
//
// When is a result valid? CPU tensors: when wait() returns. CUDA tensors: for what the current
// stream is given after wait() returned; the host does not wait.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/core/Device.h>

#include <cstdint>
#include <memory>
#include <span>

namespace laterna::dist {

/// A collective under way; its communicator must outlive it. Destroying one that is not done is a
/// programming error and aborts, except while an exception unwinds: then its tensors are kept alive
/// for the messages still under way.
class Work {
 public:
  virtual ~Work() = default;
  /// Drives the collective a little further without blocking; true when the result is valid.
  virtual bool test() = 0;
  /// Makes the result valid. Throws std::runtime_error naming the operation.
  virtual void wait() = 0;
};

/// A group of ranks. All dtypes that ATen stores contiguously are accepted for moves; sums take
/// float32, float64 and int64.
class Communicator {
 public:
  virtual ~Communicator() = default;
  virtual int rank() const = 0;
  virtual int size() const = 0;
  /// Where the tensors lie that it moves.
  virtual at::Device device() const = 0;

  /// `tensor` (any shape, the same on all ranks) becomes the sum over ranks.
  virtual std::unique_ptr<Work> all_reduce(const at::Tensor& tensor) = 0;
  /// `all` [size, ...mine] receives `mine` [...] of every rank, in rank order.
  virtual std::unique_ptr<Work> all_gather(const at::Tensor& mine, const at::Tensor& all) = 0;
  /// Rows (first dimension) of `send` go out in rank order, `send_rows[r]` of them to rank r;
  /// `receive` gets `receive_rows[r]` rows from rank r, in rank order. One shape of row everywhere.
  virtual std::unique_ptr<Work> all_to_all_v(const at::Tensor& send,
                                             std::span<const std::int64_t> send_rows,
                                             const at::Tensor& receive,
                                             std::span<const std::int64_t> receive_rows) = 0;
  /// `tensor` becomes rank `root`'s.
  virtual std::unique_ptr<Work> broadcast(const at::Tensor& tensor, int root) = 0;
  virtual std::unique_ptr<Work> barrier() = 0;
};

}  // namespace laterna::dist
