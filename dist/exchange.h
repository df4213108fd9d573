// Moves blocks between the ranks of an expert-parallel group as a step plan says: out from a
// sample's rank to the ranks that hold its candidates, and back. Four legs: spikes out (bits) and
// weighted sums back in the forward pass, gradients of the sums out and gradients of the spikes
// back in the backward pass, the gates' gradients beside the latter. One message a spiking step and
// rank; counts are the plan's, none travel. Open MPI moves large messages only while it is called:
// poll() during work.
#pragma once

#include <ATen/core/Tensor.h>

#include <array>
#include <cstdint>
#include <functional>
#include <memory>
#include <vector>

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
  /// Blocks on their way. wait() before the next flight of the same leg, but for scalars:
  /// its buffers are reused.
  class Flight {
   public:
    Flight(Traffic& traffic, std::vector<std::unique_ptr<Work>> works, std::function<void()> arrive)
        : traffic_(traffic), works_(std::move(works)), arrive_(std::move(arrive)) {}
    /// Drives the messages on without blocking.
    void poll();
    /// Blocks until all of it is there, then puts it in its place.
    void wait();

   private:
    Traffic& traffic_;
    std::vector<std::unique_ptr<Work>> works_;  // by step
    std::function<void()> arrive_;
  };

  /// `bfloat16`: the three dense legs travel rounded to bfloat16 (training.precision = "bfloat16").
  explicit Exchange(Communicator& group, bool bfloat16 = false)
      : group_(group), bfloat16_(bfloat16) {}

  Communicator& group() const { return group_; }
  const std::array<Traffic, 4>& traffic() const { return traffic_; }

  /// Out: rows plan.sent of `blocks` [T*B, elements]; after wait() `received` is [R, elements].
  /// Leg::spikes travels in bits (blocks are 0 and 1), any other dense.
  [[nodiscard]] Flight send_out(Leg leg, const LayerPlan& plan, const at::Tensor& blocks,
                                const at::Tensor& received);
  /// Back, dense: `blocks` [R, elements]; after wait() `returned` is [S, elements].
  [[nodiscard]] Flight send_back(Leg leg, const LayerPlan& plan, const at::Tensor& blocks,
                                 const at::Tensor& returned);
  /// Back, never rounded, counted with Leg::spike_gradients: `scalars` [R, columns], after wait()
  /// `returned` [S, columns].
  [[nodiscard]] Flight send_scalars_back(const LayerPlan& plan, const at::Tensor& scalars,
                                         const at::Tensor& returned);

 private:
  using Rows = std::vector<std::vector<std::int64_t>>;  // [T][EP]

  std::vector<std::unique_ptr<Work>> post(Leg leg, const at::Tensor& from, const Rows& from_rows,
                                          const at::Tensor& to, const Rows& to_rows);
  Flight send_dense(Leg leg, const at::Tensor& from, const Rows& from_rows, const at::Tensor& to,
                    const Rows& to_rows);
  at::Tensor buffer(std::size_t which, std::int64_t rows, std::int64_t columns,
                    at::ScalarType dtype, at::Device device);

  Communicator& group_;
  bool bfloat16_;
  std::array<Traffic, 4> traffic_{};
  std::array<at::Tensor, 8> buffers_;  // bytes, out and in of each leg, as large as ever needed
};

}  // namespace laterna::dist
