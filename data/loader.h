// Feeds a rank: a thread copies its slice of each global batch out of the mapped shards before the
// step asks for it. What a batch holds is a function of (seed, step, index in the global batch)
// alone, so any cut of the batch over ranks gives the same samples.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <deque>
#include <exception>
#include <mutex>
#include <thread>
#include <vector>

#include "data/image_set.h"
#include "data/partition.h"

namespace laterna::data {

struct LoaderOptions {
  std::uint64_t seed = 0;
  std::int64_t global_batch = 0;  // samples of a step over all ranks
  std::int64_t first = 0;         // this rank's slice of it: indices first..first+count-1
  std::int64_t count = 0;         // may be 0
  bool flip = false;              // mirror left and right at random
  std::uint64_t start_step = 0;   // the first step that next() gives
  int depth = 2;                  // batches kept ready
};

/// A rank's samples of one step.
struct Batch {
  std::uint64_t step;
  std::vector<std::uint8_t> pixels;   // [count,C,H,W]
  std::vector<std::int64_t> indices;  // [count], which image of the set each one is
};

/// Whether sample `index` (in the global batch) of a step is mirrored.
bool is_flipped(std::uint64_t seed, std::uint64_t step, std::int64_t index);

/// Prefetches from `set`, which must outlive it. The destructor stops and joins the thread.
class Loader {
 public:
  /// Throws std::invalid_argument when the slice does not lie in the global batch.
  Loader(const ImageSet& set, LoaderOptions options);
  ~Loader();
  Loader(const Loader&) = delete;
  Loader& operator=(const Loader&) = delete;

  /// The batch of the next step, in step order. Rethrows what went wrong on the thread.
  Batch next();
  /// Seconds spent in next() waiting for the thread, in all; near zero when loading keeps up.
  double waited_seconds() const { return waited_seconds_; }

 private:
  void run();
  Batch load(std::uint64_t step);

  const ImageSet& set_;
  LoaderOptions options_;
  Partition partition_;  // the thread's
  double waited_seconds_ = 0;
  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<Batch> ready_;
  std::exception_ptr failure_;
  bool stopping_ = false;
  std::thread thread_;  // last: it starts when everything else stands
};

}  // namespace laterna::data
