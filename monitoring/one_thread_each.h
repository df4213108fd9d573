// Mathematics whose bits must not depend on the number of threads. LibTorch and MKL split a sum
// among their threads, and another split rounds differently. So inside this scope every operation
// runs on one thread, and what is independent of each other (replicas, subsets, panels of a matrix)
// is spread over threads instead: each piece is the same sum in the same order, wherever it runs.
#pragma once

#include <cstdint>
#include <functional>

namespace laterna::monitoring {

/// While it lives, LibTorch and MKL use one thread in the calling thread and in the threads of
/// each(). LibTorch's number is the whole process's: let nothing else compute meanwhile.
class OneThreadEach {
 public:
  OneThreadEach();
  ~OneThreadEach();
  OneThreadEach(const OneThreadEach&) = delete;
  OneThreadEach& operator=(const OneThreadEach&) = delete;

  /// work(0) .. work(count - 1), as many at once as LibTorch had threads before. The pieces must be
  /// independent. Throws what the first piece that failed, by its index, has thrown, and begins no
  /// others then.
  void each(std::int64_t count, const std::function<void(std::int64_t)>& work) const;

 private:
  int threads_;
};

}  // namespace laterna::monitoring
