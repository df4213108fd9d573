// The threads take the index of their next piece from a shared counter.
#include "monitoring/quality/one_thread_each.h"

#include <ATen/Parallel.h>

#include <algorithm>
#include <atomic>
#include <exception>
#include <mutex>
#include <thread>
#include <vector>

namespace laterna::monitoring {

OneThreadEach::OneThreadEach() : threads_(at::get_num_threads()) { at::set_num_threads(1); }

OneThreadEach::~OneThreadEach() { at::set_num_threads(threads_); }

void OneThreadEach::each(std::int64_t count, const std::function<void(std::int64_t)>& work) const {
  std::atomic<std::int64_t> next{0};
  std::mutex mutex;
  std::int64_t failed = count;  // lowest index of a failed piece
  std::exception_ptr error;
  const auto take_turns = [&] {
    at::set_num_threads(1);  // MKL and OpenMP have one count per thread
    for (std::int64_t i = next++; i < count; i = next++) {
      try {
        work(i);
      } catch (...) {
        const std::lock_guard lock(mutex);
        if (i < failed) {
          failed = i;
          error = std::current_exception();
        }
        next = count;
      }
    }
  };
  std::vector<std::jthread> threads;
  const std::int64_t others = std::min<std::int64_t>(threads_, count) - 1;
  for (std::int64_t i = 0; i < others; ++i) threads.emplace_back(take_turns);
  take_turns();
  threads.clear();
  if (error) std::rethrow_exception(error);
}

}  // namespace laterna::monitoring
