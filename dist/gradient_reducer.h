// Sums gradients over ranks while the backward pass is still running. All gradients are views of
// one flat buffer in the order of forward use; backward fills it from its end, so a bucket is a
// contiguous slice and the first bucket to be sent is the end of the buffer. Buckets are sent
// in this order only, each when all its parameters have their gradient: one that is complete early
// waits for those before it, so that autograd never decides which collective a rank enters. Each
// hook also polls the collectives in progress, because Open MPI progresses only when called.
//
// A step: backward of all micro-batches but the last; arm(); backward of the last; finish(). A rank
// without a sample also calls arm() and finish(), and contributes the zeros in its buffer.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <deque>
#include <memory>
#include <vector>

#include "dist/comm/communicator.h"

namespace laterna::dist {

class GradientReducer {
 public:
  /// About one bucket is left to wait for after backward, so a bucket should be small; but between
  /// two processes of one machine 1 MiB is summed at 3.0 GB/s, 256 KiB at 2.5, 4 MiB at 3.4.
  static constexpr std::int64_t kBucketBytes = std::int64_t{1} << 20;

  /// `parameters`: leaves that require gradients, each with a contiguous .grad that is a view of
  /// `flat_gradient` (one dimension, contiguous, float32 or float64), at ascending offsets without
  /// overlap. From then on gradients are accumulated in place: zero the buffer, never reset .grad.
  /// Throws std::invalid_argument naming the parameter's index. `reduction` must outlive the
  /// reducer.
  GradientReducer(Communicator& reduction, std::vector<at::Tensor> parameters,
                  at::Tensor flat_gradient, std::int64_t bucket_bytes = kBucketBytes);
  ~GradientReducer();
  GradientReducer(const GradientReducer&) = delete;
  GradientReducer& operator=(const GradientReducer&) = delete;

  /// Declares the next backward the step's last: its hooks send buckets. Throws std::logic_error
  /// when already armed, or when a parameter's .grad is no longer a view of the flat buffer.
  void arm();
  /// Sends the buckets that backward left and waits for all. Then the flat buffer holds the sum
  /// over ranks, the same bits on all ranks. Throws std::logic_error when not armed,
  /// std::runtime_error when MPI fails.
  void finish();

  /// The communication cost of the step that the last finish() completed.
  struct Report {
    double exposed_seconds = 0;            // spent in finish(), not hidden behind backward
    std::int64_t bytes = 0;                // of gradients summed (0 with one rank)
    std::int64_t buckets = 0;              // in the step
    std::int64_t buckets_in_backward = 0;  // of these, sent before finish()
  };
  const Report& report() const { return report_; }

 private:
  class Hook;
  struct Accumulator;  // a parameter's AccumulateGrad node, with the key of our hook
  struct Bucket {
    at::Tensor slice;
    std::int64_t parameters = 0;
    std::int64_t missing = 0;  // parameters that have no gradient yet
  };

  void find_offsets();
  void make_buckets(std::int64_t bucket_bytes);
  void install_hooks();
  void on_gradient(std::size_t parameter);
  void launch_next();
  void poll();

  Communicator& reduction_;
  std::vector<at::Tensor> parameters_;
  at::Tensor flat_gradient_;
  std::vector<Accumulator> accumulators_;
  std::vector<std::int64_t> offsets_;   // of each parameter in the flat buffer, in elements
  std::vector<std::size_t> bucket_of_;  // of each parameter
  std::vector<Bucket> buckets_;         // in the order in which they are sent
  std::vector<char> ready_;             // of each parameter: has its gradient, since arm()
  std::deque<std::unique_ptr<Work>> under_way_;
  std::size_t next_bucket_ = 0;
  bool armed_ = false;
  Report report_;
};

}  // namespace laterna::dist
