#include "launch/training/micro_batch.h"

#include <fmt/format.h>
#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>
#include <fstream>
#include <limits>
#include <string>

#include "data/partition.h"
#include "dist/cuda_backend.h"
#include "launch/cgroups.h"
#include "model/parameters.h"

namespace laterna::launch {
namespace {

/// Returns MemAvailable of this host in bytes, or 2 GiB where it is unknown.
std::int64_t free_host_memory() {
  std::ifstream file("/proc/meminfo");
  for (std::string key, unit; file >> key;) {
    std::int64_t kibibytes = 0;
    file >> kibibytes;
    std::getline(file, unit);
    if (key == "MemAvailable:") return kibibytes * 1024;
  }
  return std::int64_t{2} << 30;
}

/// Returns the bytes that this process may still map (RLIMIT_AS, `ulimit -v`).
double free_address_space() {
  rlimit limit{};
  if (getrlimit(RLIMIT_AS, &limit) != 0 || limit.rlim_cur == RLIM_INFINITY) {
    return std::numeric_limits<double>::infinity();
  }
  std::int64_t pages = 0;
  std::ifstream("/proc/self/statm") >> pages;
  return std::max(0.0, double(limit.rlim_cur) - double(pages) * double(sysconf(_SC_PAGESIZE)));
}

/// Returns the bytes that a rank of this host may use: its share of what is free on the host and in
/// the job's control group, within its own limit.
double free_memory(const dist::World& world) {
  return std::min(std::min(double(free_host_memory()), free_group_memory()) / world.local_size(),
                  free_address_space());
}

std::int64_t ranks_a_device(const dist::World& world) {
  const int gpus = world.device().gpus();
  return (world.local_size() + gpus - 1) / gpus;
}

}  // namespace

double activation_bytes(const Config& config) {
  const auto& m = config.model;
  const double unit =  // one [T, M, D] activation
      double(m.spiking_steps) * double(m.tokens()) * double(m.width) *
      (config.precision().float64 ? 8 : 4);
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
  return unit * double(units + 12 + 2 * (2 + 2 * m.hidden_ratio));
}

std::int64_t choose_micro_batch(const Config& config, const dist::World& world) {
  const std::int64_t largest = data::share_of(config.training.batch, 0, world.size()).count;
  if (config.training.micro_batch > 0) return std::min(config.training.micro_batch, largest);
  const double budget =
      world.device().is_cuda()
          ? double(world.device().cuda()->free_memory()) / double(2 * ranks_a_device(world))
          : std::min(free_memory(world) / 2, double(std::int64_t{3} << 30));
  const auto fitting =
      std::max<std::int64_t>(1, static_cast<std::int64_t>(budget / activation_bytes(config)));
  const std::int64_t count = (largest + fitting - 1) / fitting;
  return (largest + count - 1) / count;  // micro-batches of equal size
}

void require_memory(const Config& config, const dist::World& world) {
  if (world.device().is_cuda()) return;  // LibTorch names the GPU and its memory
  const dist::Placement placement = config.placement();
  const auto specs =
      model::parameter_specs(config.model, placement, world.rank() % placement.ranks());
  // Weights, their average, their gradient and two moments; a writer copies all but the gradient.
  const int copies = world.rank() < placement.shards() ? 9 : 5;
  const double weights =
      double(model::count_of(specs)) * copies * (config.precision().float64 ? 8 : 4);
  const double sample = activation_bytes(config);
  const double free = free_memory(world);
  if (weights + sample <= free) return;
  throw UsageError(fmt::format(
      "training needs {:.1f} GB on this rank ({:.1f} GB for weights, gradients, optimiser and "
      "checkpoints, {:.1f} GB for one sample), but a rank of {} has {:.1f} GB; use fewer ranks a "
      "host, more expert-parallel ranks, a smaller model, or a larger memory limit",
      (weights + sample) / 1e9, weights / 1e9, sample / 1e9, world.host(), free / 1e9));
}

}  // namespace laterna::launch
