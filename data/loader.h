// The data loader of a rank: a thread copies a slice of each global batch (its group's) out of the
// shards before the step asks for it. Each sample is a function of (seed, step, index in
// the global batch) only, so any division of the batch over ranks gives the same samples.
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
  std::int64_t global_batch = 0;  // samples per step over all ranks
  std::int64_t first = 0;         // this rank's slice of the batch: first..first+count-1
  std::int64_t count = 0;         // may be 0
  bool flip = false;              // mirror samples left to right at random
  std::uint64_t start_step = 0;   // step of the first batch that next() returns
  int depth = 2;                  // batches kept ready
};

/// A rank's samples of one step.
struct Batch {
  std::uint64_t step;
  std::vector<std::uint8_t> pixels;   // [count,C,H,W]
  std::vector<std::int64_t> indices;  // [count], index in the set of each image
};

/// Returns whether sample `index` of a step's global batch is mirrored.
bool is_flipped(std::uint64_t seed, std::uint64_t step, std::int64_t index);

/// Prefetches batches from `set`, which must outlive the loader. The destructor stops and joins the
/// thread.
class Loader {
 public:
  /// Throws std::invalid_argument when the slice does not lie in the global batch.
  Loader(const ImageSet& set, LoaderOptions options);
  ~Loader();
  Loader(const Loader&) = delete;
  Loader& operator=(const Loader&) = delete;

  /// Returns the batch of the next step, in step order. Rethrows an exception of the thread.
  Batch next();
  /// Total seconds that next() has waited for the thread; near zero when loading keeps up.
  double waited_seconds() const { return waited_seconds_; }

 private:
  void run();
  Batch load(std::uint64_t step);

  const ImageSet& set_;
  LoaderOptions options_;
  Partition partition_;  // used only by the thread
  double waited_seconds_ = 0;
  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<Batch> ready_;
  std::exception_ptr failure_;
  bool stopping_ = false;
  std::thread thread_;  // started when all other members are initialised
};

}  // namespace laterna::data
