// Moves blocks between the ranks of an expert-parallel group as a step plan says: out from a
// sample's rank to the ranks that hold its candidates, and back. Four transfers: spikes out (bits)
// and weighted sums back in the forward pass, gradients of the sums out and gradients of the spikes
// back in the backward pass, the gates' gradients beside the latter. One message a spiking step and
// rank, so that one step's blocks are worked on while the next ones fly; counts are the plan's,
// none travel. Open MPI moves large messages only while it is called: poll() during work.
#pragma once

#include <ATen/core/Tensor.h>

#include <array>
#include <cstdint>
#include <memory>
#include <vector>

#include "dist/communicator.h"
#include "dist/heartbeat.h"
#include "dist/step_plan.h"

namespace laterna::dist {

enum class Transfer { dispatch, combine, combine_backward, dispatch_backward };
inline constexpr std::array<const char*, 4> kTransferNames = {
    "dispatch", "combine", "combine_backward", "dispatch_backward"};

/// What a transfer has carried since the exchange was made, counted where it was sent.
struct Traffic {
  std::int64_t blocks = 0, bytes = 0;
  double seconds = 0;  // spent waiting for it, not hidden behind work
};

class Exchange {
 public:
  class PendingTransfer;

  /// `bfloat16`: the three dense transfers travel rounded to bfloat16 (training.precision =
  /// "bfloat16"). `heartbeat`: where waits are noted; outlives it, or null.
  explicit Exchange(Communicator& group, bool bfloat16 = false, Heartbeat* heartbeat = nullptr)
      : group_(group), bfloat16_(bfloat16), heartbeat_(heartbeat) {}

  Communicator& group() const { return group_; }
  const std::array<Traffic, 4>& traffic() const { return traffic_; }

  /// Out: rows plan.sent of `blocks` [T*B, elements], all steps at once; `received` becomes
  /// [R, elements]. Transfer::dispatch travels in bits: blocks are 0 and 1, or bytes that hold bits
  /// already and go as they are (uint8); any other transfer travels dense.
  [[nodiscard]] PendingTransfer send_out(Transfer transfer, const LayerPlan& plan,
                                         const at::Tensor& blocks, const at::Tensor& received);
  /// Back, dense, step by step with PendingTransfer::send(); `returned` becomes [S, elements].
  [[nodiscard]] PendingTransfer begin_back(Transfer transfer, const LayerPlan& plan,
                                           const at::Tensor& returned);
  /// All of it at once: `blocks` [R, elements].
  [[nodiscard]] PendingTransfer send_back(Transfer transfer, const LayerPlan& plan,
                                          const at::Tensor& blocks, const at::Tensor& returned);
  /// Back, never rounded, counted with Transfer::dispatch_backward: `scalars` [R, columns];
  /// `returned` becomes [S, columns].
  [[nodiscard]] PendingTransfer send_scalars_back(const LayerPlan& plan, const at::Tensor& scalars,
                                                  const at::Tensor& returned);

  /// Room for what a transfer brings, [rows, columns] of `like`'s dtype and device: the same memory
  /// at every call for that transfer, as large as was ever needed.
  at::Tensor receive_buffer(Transfer transfer, std::int64_t rows, std::int64_t columns,
                            const at::Tensor& like);

 private:
  enum class WireFormat { bits, bfloat16, plain };
  enum class Use { sending, receiving, arrived };

  WireFormat dense_format() const { return bfloat16_ ? WireFormat::bfloat16 : WireFormat::plain; }
  at::Tensor buffer(Transfer transfer, Use use, std::int64_t rows, std::int64_t columns,
                    at::ScalarType dtype, at::Device device);

  Communicator& group_;
  bool bfloat16_;
  Heartbeat* heartbeat_;
  std::array<Traffic, 4> traffic_{};
  std::array<at::Tensor, 12> buffers_;  // bytes, of each transfer and use, as large as ever needed
};

/// A transfer of one layer on its way, step by step. wait() for all of it before the next pending
/// of the same transfer begins, but for scalars: its buffers are reused. The plan outlives it.
class Exchange::PendingTransfer {
 public:
  /// Sends what belongs to a step, `rows` [rows of the step, elements]; steps in ascending order.
  void send(std::int64_t step, const at::Tensor& rows);
  /// Drives the messages on without blocking.
  void poll();
  /// Until the rows of a step are there and in their place; of all steps. Waits count as the
  /// transfer's.
  void wait(std::int64_t step);
  void wait();

 private:
  friend class Exchange;
  using Rows = std::vector<std::vector<std::int64_t>>;  // [T][EP]

  PendingTransfer(Exchange& exchange, Transfer transfer, WireFormat format, const LayerPlan& plan,
                  bool back, const at::Tensor& to);
  /// Sends rows `numbers` of `blocks`.
  void send_selected(std::int64_t step, const at::Tensor& blocks, const at::Tensor& numbers);
  /// The memory that the step's rows leave from, or undefined where they leave from their own.
  at::Tensor outgoing(std::int64_t step);
  void post(std::int64_t step, const at::Tensor& rows);

  Exchange& exchange_;
  Transfer transfer_;
  WireFormat format_;
  std::int64_t layer_;
  const Rows &send_rows_, &receive_rows_;
  std::vector<std::int64_t> sent_, received_;  // [T + 1] first row of each step
  at::Tensor to_;                              // [all received rows, elements]
  at::Tensor out_, in_;                        // in wire format; undefined where it is plain
  std::vector<std::unique_ptr<Work>> works_;   // [T]; null: not sent yet, or arrived
};

}  // namespace laterna::dist
