#include "launch/training/micro_batch.h"

#include <algorithm>
#include <fstream>
#include <string>

#include "data/partition.h"
#include "dist/cuda_backend.h"

namespace laterna::launch {
namespace {

/// Returns MemAvailable of this host in bytes, or 2 GiB where it is unknown.
std::int64_t free_memory() {
  std::ifstream file("/proc/meminfo");
  for (std::string key, unit; file >> key;) {
    std::int64_t kibibytes = 0;
    file >> kibibytes;
    std::getline(file, unit);
    if (key == "MemAvailable:") return kibibytes * 1024;
  }
  return std::int64_t{2} << 30;
}

std::int64_t ranks_a_device(const dist::World& world) {
  const int gpus = world.device().gpus();
  return (world.local_size() + gpus - 1) / gpus;
}

}  // namespace

std::int64_t activation_bytes(const Config& config) {
  const auto& m = config.model;
  const std::int64_t unit =  // one [T, M, D] activation
      m.spiking_steps * m.tokens() * m.width * (config.precision().float64 ? 8 : 4);
  // With expert parallelism, a rank may in the worst case have to compute all the assignments of
  // its group's samples to the candidates that it holds.
  const dist::Placement placement = config.placement();
  const std::int64_t held = (m.candidates + placement.shards() - 1) / placement.shards();
  const std::int64_t served = std::min(m.selected, held) * placement.shards();
  // Units of a transformer block: its two sums, s, z, q, k and v before and after their neurons,
  // the attention's current and spikes; and for each assignment its input, the hidden layer before
  // and after the neurons, and its output. Backward adds the gradients of about one transformer
  // block.
  std::int64_t units = 0;
  for (std::int64_t layer = 0; layer < m.depth; ++layer) {
    const std::int64_t assignments = m.selects(layer) ? served : 1;
    units += 12 + assignments * (2 + 2 * m.hidden_ratio);
  }
  return unit * (units + 12 + 2 * (2 + 2 * m.hidden_ratio));
}

std::int64_t choose_micro_batch(const Config& config, const dist::World& world) {
  const std::int64_t largest = data::share_of(config.training.batch, 0, world.size()).count;
  if (config.training.micro_batch > 0) return std::min(config.training.micro_batch, largest);
  const std::int64_t budget =
      world.device().is_cuda()
          ? world.device().cuda()->free_memory() / (2 * ranks_a_device(world))
          : std::min(free_memory() / (2 * world.local_size()), std::int64_t{3} << 30);
  const std::int64_t fitting = std::max<std::int64_t>(1, budget / activation_bytes(config));
  const std::int64_t count = (largest + fitting - 1) / fitting;
  return (largest + count - 1) / count;  // micro-batches of equal size
}

}  // namespace laterna::launch
