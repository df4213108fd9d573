// Moves token blocks between the ranks of an expert-parallel group as a step plan says. A layer has
// four transfers between a sample's rank and the ranks that compute its candidates:
//   dispatch           forward: spikes, as bits, to the candidates' ranks
//   combine            forward: weighted sums, back to the sample's rank
//   combine_backward   backward: gradients of the sums, to the candidates' ranks
//   dispatch_backward  backward: gradients of spikes and gates, back to the sample's rank
// A transfer sends one message per spiking step and rank, so that ranks compute with one step's
// token blocks while the next ones are in transit. Counts come from the plan and are never sent.
// Open MPI moves large messages only while it is called: call poll() during computation.
#pragma once

#include <ATen/core/Tensor.h>

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

/// What a transfer has sent since the exchange was constructed, counted on the sending rank.
struct Traffic {
  std::int64_t blocks = 0, bytes = 0;
  double seconds = 0;  // spent waiting for the transfer, not hidden behind computation
};

class Exchange {
 public:
  class PendingTransfer;

  /// `bfloat16`: the three dense transfers are rounded to bfloat16 (training.precision =
  /// "bfloat16"). `heartbeat` is null or outlives the exchange; waits are recorded there.
  explicit Exchange(Communicator& group, bool bfloat16 = false, Heartbeat* heartbeat = nullptr)
      : group_(group), bfloat16_(bfloat16), heartbeat_(heartbeat) {}

  Communicator& group() const { return group_; }
  const std::array<Traffic, 4>& traffic() const { return traffic_; }

  /// Sends rows plan.sent of `blocks` [T*B, elements] to the candidates' ranks, all steps at once;
  /// `received` becomes [R, elements]. Transfer::dispatch is sent as bits: `blocks` holds 0 and 1,
  /// or bytes (uint8) that already hold bits and are sent as they are; any other transfer is sent
  /// dense.
  [[nodiscard]] PendingTransfer send_out(Transfer transfer, const LayerPlan& plan,
                                         const at::Tensor& blocks, const at::Tensor& received);
  /// Starts a dense transfer back to the samples' ranks; PendingTransfer::send() sends its rows
  /// step by step; `returned` becomes [S, elements].
  [[nodiscard]] PendingTransfer begin_back(Transfer transfer, const LayerPlan& plan,
                                           const at::Tensor& returned);
  /// Sends `blocks` [R, elements] back to the samples' ranks, dense, all steps at once; `returned`
  /// becomes [S, elements].
  [[nodiscard]] PendingTransfer send_back(Transfer transfer, const LayerPlan& plan,
                                          const at::Tensor& blocks, const at::Tensor& returned);
  /// Sends `scalars` [R, columns] back to the samples' ranks, never rounded; `returned` becomes [S,
  /// columns]. Bytes and waits count as Transfer::dispatch_backward's; scalars are not counted as
  /// blocks.
  [[nodiscard]] PendingTransfer send_scalars_back(const LayerPlan& plan, const at::Tensor& scalars,
                                                  const at::Tensor& returned);

  /// Returns a receive buffer [rows, columns] of `like`'s dtype and device: the same memory at
  /// every call for a transfer, as large as ever needed so far.
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
  std::array<at::Tensor, 12> buffers_;  // uint8, of each transfer and use; as large as ever needed
};

/// A pending transfer of one layer, step by step. Its buffers are reused: wait() for all steps
/// before the next PendingTransfer of the same kind begins, except for scalars. The plan must
/// outlive it.
class Exchange::PendingTransfer {
 public:
  /// Sends the rows of one step, `rows` [rows of the step, elements]; call it in ascending order of
  /// steps.
  void send(std::int64_t step, const at::Tensor& rows);
  /// Advances the messages without blocking.
  void poll();
  /// Wait until the rows of one step, or of all steps, are received and in their place. The time
  /// spent counts as the transfer's.
  void wait(std::int64_t step);
  void wait();

 private:
  friend class Exchange;
  using Rows = std::vector<std::vector<std::int64_t>>;  // [T][EP]

  PendingTransfer(Exchange& exchange, Transfer transfer, WireFormat format, const LayerPlan& plan,
                  bool back, const at::Tensor& to);
  /// Sends those rows `numbers` of `blocks` that belong to the step.
  void send_selected(std::int64_t step, const at::Tensor& blocks, const at::Tensor& numbers);
  /// Returns the send buffer of the step, or an undefined tensor where rows are sent from their own
  /// memory.
  at::Tensor outgoing(std::int64_t step);
  void post(std::int64_t step, const at::Tensor& rows);

  Exchange& exchange_;
  Transfer transfer_;
  WireFormat format_;
  std::int64_t layer_;
  const Rows &send_rows_, &receive_rows_;
  std::vector<std::int64_t> sent_, received_;  // [T + 1] first row of each step
  at::Tensor to_;                              // [all received rows, elements]
  at::Tensor out_, in_;                        // in wire format; undefined: no copy needed
  std::vector<std::unique_ptr<Work>> works_;   // [T]; null: not sent yet, or received
};

}  // namespace laterna::dist
