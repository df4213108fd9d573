// One thread fills one bounded queue. The thread ends on a failure, which next() rethrows after it
// has returned the batches loaded before.
#include "data/loader.h"

#include <algorithm>
#include <chrono>
#include <stdexcept>
#include <utility>

#include "data/host.h"
#include "data/philox.h"

namespace laterna::data {
namespace {

// Reverses each of `rows` rows of `width` pixels.
void mirror(std::uint8_t* pixels, std::int64_t rows, int width) {
  for (std::int64_t row = 0; row < rows; ++row) {
    std::reverse(pixels + row * width, pixels + (row + 1) * width);
  }
}

}  // namespace

bool is_flipped(std::uint64_t seed, std::uint64_t step, std::int64_t index) {
  return random_below(2, seed, Stream::flip, step, static_cast<std::uint32_t>(index)) == 1;
}

Loader::Loader(const ImageSet& set, LoaderOptions options)
    : set_(set), options_(options), partition_(options.seed, set.count()) {
  if (options_.first < 0 || options_.count < 0 || options_.depth < 1 ||
      options_.first + options_.count > options_.global_batch) {
    throw std::invalid_argument("a rank's slice must lie within the global batch");
  }
  thread_ = std::thread(&Loader::run, this);
}

Loader::~Loader() {
  {
    const std::lock_guard lock(mutex_);
    stopping_ = true;
  }
  changed_.notify_all();
  thread_.join();
}

void Loader::run() {
  try {
    for (std::uint64_t step = options_.start_step;; ++step) {
      Batch batch = load(step);
      std::unique_lock lock(mutex_);
      changed_.wait(lock, [this] {
        return stopping_ || ready_.size() < static_cast<std::size_t>(options_.depth);
      });
      if (stopping_) return;
      ready_.push_back(std::move(batch));
      changed_.notify_all();
    }
  } catch (...) {
    const std::lock_guard lock(mutex_);
    failure_ = std::current_exception();
    changed_.notify_all();
  }
}

Batch Loader::load(std::uint64_t step) {
  const std::int64_t bytes = set_.image_bytes();
  Batch batch{
      step, std::vector<std::uint8_t>(static_cast<std::size_t>(options_.count * bytes)), {}};
  for (std::int64_t i = 0; i < options_.count; ++i) {
    const std::int64_t in_batch = options_.first + i;
    const std::int64_t index = partition_.at(step, options_.global_batch, in_batch);
    std::uint8_t* out = batch.pixels.data() + i * bytes;
    set_.read(index, out);
    if (options_.flip && is_flipped(options_.seed, step, in_batch)) {
      mirror(out, bytes / set_.width(), set_.width());
    }
    batch.indices.push_back(index);
  }
  return batch;
}

Batch Loader::next() {
  std::unique_lock lock(mutex_);
  if (ready_.empty()) {
    const auto start = std::chrono::steady_clock::now();
    changed_.wait(lock, [this] { return !ready_.empty() || failure_; });
    waited_seconds_ += seconds_since(start);
  }
  if (ready_.empty()) std::rethrow_exception(failure_);
  Batch batch = std::move(ready_.front());
  ready_.pop_front();
  lock.unlock();
  changed_.notify_all();
  return batch;
}

}  // namespace laterna::data
