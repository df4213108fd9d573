// Moves blocks between the ranks of an expert-parallel group as a step plan says: out from a
// sample's rank to the ranks that hold its candidates, and back. Four legs: spikes out (bits) and
// weighted sums back in the forward pass, gradients of the sums out and gradients of the spikes
// back in the backward pass, the gates' gradients beside the latter. One message a spiking step and
// rank, so that one step's blocks are worked on while the next ones fly; counts are the plan's,
// none travel. Open MPI moves large messages only while it is called: poll() during work.
#pragma once

#include <ATen/core/Tensor.h>

#include <array>
#include <cstdint>
#include <memory>
#include <vector>

#include "dist/activity.h"
#include "dist/communicator.h"
#include "dist/step_plan.h"

namespace laterna::dist {

enum class Leg { spikes, sums, sum_gradients, spike_gradients };
inline constexpr std::array<const char*, 4> kLegNames = {"spikes", "sums", "sum_gradients",
                                                         "spike_gradients"};

/// What a leg has carried since the exchange was made, counted where it was sent.
struct Traffic {
  std::int64_t blocks = 0, bytes = 0;
  double seconds = 0;  // spent waiting for it, not hidden behind work
};

class Exchange {
 public:
  class Flight;

  /// `bfloat16`: the three dense legs travel rounded to bfloat16 (training.precision = "bfloat16").
  /// `activity`: where waits are noted; outlives it, or null.
  explicit Exchange(Communicator& group, bool bfloat16 = false, Activity* activity = nullptr)
      : group_(group), bfloat16_(bfloat16), activity_(activity) {}

  Communicator& group() const { return group_; }
  const std::array<Traffic, 4>& traffic() const { return traffic_; }

  /// Out: rows plan.sent of `blocks` [T*B, elements], all steps at once; `received` becomes
  /// [R, elements]. Leg::spikes travels in bits: blocks are 0 and 1, or bytes that hold bits
  /// already and go as they are (uint8); any other leg travels dense.
  [[nodiscard]] Flight send_out(Leg leg, const LayerPlan& plan, const at::Tensor& blocks,
                                const at::Tensor& received);
  /// Back, dense, step by step with Flight::send(); `returned` becomes [S, elements].
  [[nodiscard]] Flight begin_back(Leg leg, const LayerPlan& plan, const at::Tensor& returned);
  /// All of it at once: `blocks` [R, elements].
  [[nodiscard]] Flight send_back(Leg leg, const LayerPlan& plan, const at::Tensor& blocks,
                                 const at::Tensor& returned);
  /// Back, never rounded, counted with Leg::spike_gradients: `scalars` [R, columns]; `returned`
  /// becomes [S, columns].
  [[nodiscard]] Flight send_scalars_back(const LayerPlan& plan, const at::Tensor& scalars,
                                         const at::Tensor& returned);

  /// Room for what a leg brings, [rows, columns] of `like`'s dtype and device: the same memory at
  /// every call for that leg, as large as was ever needed.
  at::Tensor room(Leg leg, std::int64_t rows, std::int64_t columns, const at::Tensor& like);

 private:
  enum class Wire { bits, bfloat16, plain };
  enum class Use { sending, receiving, arrived };

  Wire dense_wire() const { return bfloat16_ ? Wire::bfloat16 : Wire::plain; }
  at::Tensor buffer(Leg leg, Use use, std::int64_t rows, std::int64_t columns, at::ScalarType dtype,
                    at::Device device);

  Communicator& group_;
  bool bfloat16_;
  Activity* activity_;
  std::array<Traffic, 4> traffic_{};
  std::array<at::Tensor, 12> buffers_;  // bytes, of each leg and use, as large as ever needed
};

/// A leg of one layer on its way, step by step. wait() for all of it before the next flight of the
/// same leg begins, but for scalars: its buffers are reused. The plan outlives it.
class Exchange::Flight {
 public:
  /// Sends what belongs to a step, `rows` [rows of the step, elements]; steps in ascending order.
  void send(std::int64_t step, const at::Tensor& rows);
  /// Drives the messages on without blocking.
  void poll();
  /// Until the rows of a step are there and in their place; of all steps. Waits count as the leg's.
  void wait(std::int64_t step);
  void wait();

 private:
  friend class Exchange;
  using Rows = std::vector<std::vector<std::int64_t>>;  // [T][EP]

  Flight(Exchange& exchange, Leg leg, Wire wire, const LayerPlan& plan, bool back,
         const at::Tensor& to);
  /// Sends rows `numbers` of `blocks`.
  void send_selected(std::int64_t step, const at::Tensor& blocks, const at::Tensor& numbers);
  /// The memory that the step's rows leave from, or undefined where they leave from their own.
  at::Tensor outgoing(std::int64_t step);
  void post(std::int64_t step, const at::Tensor& rows);

  Exchange& exchange_;
  Leg leg_;
  Wire wire_;
  std::int64_t layer_;
  const Rows &send_rows_, &receive_rows_;
  std::vector<std::int64_t> sent_, received_;  // [T + 1] first row of each step
  at::Tensor to_;                              // [all received rows, elements]
  at::Tensor out_, in_;                        // on the wire; undefined where it is plain
  std::vector<std::unique_ptr<Work>> works_;   // [T]; null: not sent yet, or arrived
};

}  // namespace laterna::dist
