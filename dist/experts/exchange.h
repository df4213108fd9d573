// Moves rows of tensors between the ranks of an expert-parallel group, as a step plan says. A layer
// has four transfers. In the forward pass dispatch sends spikes from a sample's rank to the ranks
// that hold its candidates, and combine returns weighted sums. In the backward pass
// combine_backward sends the gradients of the sums, and dispatch_backward returns those of the
// spikes and of the gates. What the rows contain is the caller's matter; they
// travel in the dtype of the tensor that receives them.
//
// Each spiking step is one message per rank, so that a step can be computed while the next one is
// transferred. All counts come from the plan; none are sent. Open MPI makes progress on large
// messages only inside its calls: call poll() during computation.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/core/TensorOptions.h>

#include <array>
#include <cstdint>
#include <memory>
#include <vector>

#include "dist/comm/communicator.h"
#include "dist/experts/step_plan.h"
#include "dist/heartbeat.h"

namespace laterna::dist {

enum class Transfer { dispatch, combine, combine_backward, dispatch_backward };
inline constexpr std::array<const char*, 4> kTransferNames = {
    "dispatch", "combine", "combine_backward", "dispatch_backward"};

/// What a transfer has moved since the Exchange was constructed, counted on the sending rank.
struct Traffic {
  std::int64_t blocks = 0, bytes = 0;
  double seconds = 0;  // spent waiting for the transfer, not hidden behind computation
};

/// Whether the rows of a transfer are token blocks, or a few numbers that accompany them and are
/// not counted as token blocks.
enum class Rows { token_blocks, scalars };

class Exchange {
 public:
  class PendingTransfer;

  /// `heartbeat`: records waits; outlives the exchange, or is null.
  explicit Exchange(Communicator& group, Heartbeat* heartbeat = nullptr)
      : group_(group), heartbeat_(heartbeat) {}

  Communicator& group() const { return group_; }
  const std::array<Traffic, 4>& traffic() const { return traffic_; }

  /// Begins a transfer, whose rows PendingTransfer::send() sends step by step. dispatch and
  /// combine_backward send S rows and receive R, combine and dispatch_backward send R and receive
  /// S. `received`: [rows received, columns]; rows are converted to its dtype before they are sent.
  [[nodiscard]] PendingTransfer begin(Transfer transfer, const LayerPlan& plan,
                                      const at::Tensor& received, Rows rows = Rows::token_blocks);
  /// Begins dispatch or combine_backward and sends, step by step, the rows plan.sent of `blocks`
  /// [T*B, columns].
  [[nodiscard]] PendingTransfer send_out(Transfer transfer, const LayerPlan& plan,
                                         const at::Tensor& blocks, const at::Tensor& received);
  /// Begins a transfer and sends the rows of all steps, `sent` [rows sent, columns].
  [[nodiscard]] PendingTransfer send(Transfer transfer, const LayerPlan& plan,
                                     const at::Tensor& sent, const at::Tensor& received,
                                     Rows rows = Rows::token_blocks);

  /// Returns a tensor to receive a transfer's rows in, [rows, columns]. Its memory is the same at
  /// every call for that transfer and grows as needed: wait for the transfer before its next one
  /// begins.
  at::Tensor receive_buffer(Transfer transfer, std::int64_t rows, std::int64_t columns,
                            at::TensorOptions options);

 private:
  Communicator& group_;
  Heartbeat* heartbeat_;
  std::array<Traffic, 4> traffic_{};
  std::array<at::Tensor, 4> buffers_;  // bytes
};

/// A transfer of one layer in progress, step by step. The plan must outlive it.
class Exchange::PendingTransfer {
 public:
  /// Sends the rows of a step, [rows of the step, columns]; steps in ascending order.
  void send(std::int64_t step, const at::Tensor& rows);
  /// Advances the messages without blocking.
  void poll();
  /// Waits until the rows of a step have been received, or those of all steps that are sent.
  void wait(std::int64_t step);
  void wait();

 private:
  friend class Exchange;
  using RowCounts = std::vector<std::vector<std::int64_t>>;  // [T][EP]

  PendingTransfer(Exchange& exchange, Transfer transfer, const LayerPlan& plan,
                  const at::Tensor& received, Rows rows);
  Traffic& traffic() const { return exchange_.traffic_[static_cast<std::size_t>(transfer_)]; }

  Exchange& exchange_;
  Transfer transfer_;
  Rows rows_;
  std::int64_t layer_;
  const RowCounts &send_rows_, &receive_rows_;
  std::vector<std::int64_t> sent_, received_;  // [T + 1] row offsets of the steps
  at::Tensor to_;                              // all rows received
  std::vector<std::unique_ptr<Work>> works_;   // [T]; null: not sent yet, or received
};

}  // namespace laterna::dist
