// How many samples a rank takes of the global batch, and how many of them at once.
#pragma once

#include <cstdint>

#include "dist/world.h"
#include "launch/config.h"

namespace laterna::launch {

/// A rank's share of the global batch: samples first .. first+count-1. Shares differ by one at
/// most, the lower ranks' being the larger; with more ranks than samples some are empty.
struct Share {
  std::int64_t first, count;
};
Share share_of(std::int64_t batch, int rank, int ranks);

/// Bytes of activations that training keeps for one sample, for choosing the micro-batch.
std::int64_t activation_bytes(const Config& config);

/// training.micro_batch, or the largest that keeps a rank's activations within its part of the free
/// memory of its device and, on the CPU, within 3 GiB (more does not make matrix products faster).
std::int64_t choose_micro_batch(const Config& config, const dist::World& world);

}  // namespace laterna::launch
