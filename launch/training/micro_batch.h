// How many samples a rank trains at a time: the micro-batch, chosen to fit memory.
#pragma once

#include <cstdint>

#include "dist/world.h"
#include "launch/config.h"

namespace laterna::launch {

/// Estimates the bytes of activations that training keeps per sample, for choose_micro_batch().
double activation_bytes(const Config& config);

/// Returns training.micro_batch if it is set, otherwise the largest size whose activations fit into
/// half of the rank's part of its device's free memory and, on the CPU, into 3 GiB (larger
/// micro-batches do not make matrix products faster).
std::int64_t choose_micro_batch(const Config& config, const dist::World& world);

/// Throws UsageError, naming what is needed and what there is, when this rank's weights and one
/// sample do not fit in what it may use of the host's memory.
void require_memory(const Config& config, const dist::World& world);

}  // namespace laterna::launch
