// Computation whose bits do not depend on the number of threads. LibTorch and MKL split a sum among
// their threads, and another split rounds differently. Within this scope every operation therefore
// runs on one thread, and independent pieces (replicas, subsets, panels of a matrix) are
// distributed over threads instead: a piece computes the same sums in the same order on any thread.
#pragma once

#include <cstdint>
#include <functional>

namespace laterna::monitoring {

/// During its lifetime, LibTorch and MKL use one thread in the calling thread and in the threads of
/// each(). LibTorch's thread count is process-wide: nothing else may compute at the same time.
class OneThreadEach {
 public:
  OneThreadEach();
  ~OneThreadEach();
  OneThreadEach(const OneThreadEach&) = delete;
  OneThreadEach& operator=(const OneThreadEach&) = delete;

  /// Runs work(0) .. work(count - 1), as many at once as LibTorch had threads before. The pieces
  /// must be independent. After a piece has thrown, no others are started, and the exception of the
  /// failed piece with the lowest index is rethrown.
  void each(std::int64_t count, const std::function<void(std::int64_t)>& work) const;

 private:
  int threads_;
};

}  // namespace laterna::monitoring
