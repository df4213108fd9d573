// How many samples of the global batch each rank trains, and how many of them at a time: the
// micro-batch.
#pragma once

#include <cstdint>

#include "dist/world.h"
#include "launch/config.h"

namespace laterna::launch {

/// A rank's share of the global batch: samples first .. first+count-1. Shares differ by at most one
/// sample, lower ranks having the larger ones; with more ranks than samples some are empty.
struct Share {
  std::int64_t first, count;
};
Share share_of(std::int64_t batch, int rank, int ranks);

/// Estimates the bytes of activations that training keeps per sample, for choose_micro_batch().
std::int64_t activation_bytes(const Config& config);

/// Returns training.micro_batch if it is set, otherwise the largest size whose activations fit into
/// half of the rank's part of its device's free memory and, on the CPU, into 3 GiB (larger
/// micro-batches do not make matrix products faster).
std::int64_t choose_micro_batch(const Config& config, const dist::World& world);

}  // namespace laterna::launch
