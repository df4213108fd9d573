// Sampling spread over ranks: chunks go to the ranks in turn, whole, in rounds, so that an image
// depends on weights, seed, its number and the chunk's size alone (spec section 5).
#pragma once

#include <ATen/core/Tensor.h>

#include <functional>

#include "dist/world.h"
#include "launch/checkpoint.h"
#include "launch/config.h"
#include "model/parameters.h"

namespace laterna::launch {

/// The weights for sampling as configured, of the candidates those alone that some image selects at
/// some step of the sampler. Throws as load_weights() does, and UsageError when `config` is of
/// another model than the checkpoint.
LoadedWeights load_sampled_weights(const RunWeights& weights, const Config& config,
                                   at::Device device);

/// A rank's place in a round. Ranks without a chunk (-1) go through the same steps.
struct SamplingStep {
  std::int64_t chunk;
  std::int64_t step, steps;  // of all rounds together
};

struct SamplingCalls {
  /// At each denoising step, on every rank at the same; x [m, C, H, W] enters it, undefined without
  /// a chunk. May be collective; what it throws on all ranks ends the sampling.
  std::function<void(const SamplingStep& at, const at::Tensor& x)> on_step;
  /// After a round: images [m, C, H, W] in [-1, 1], undefined without a chunk. May be collective.
  std::function<void(std::int64_t chunk, const at::Tensor& images)> on_round;
};

/// Collective: images 0 .. count-1 as configured, up to the end of the last chunk, on any number of
/// ranks. `parameters`: those of load_sampled_weights(), on the world's device. Throws
/// CollectiveError when a rank fails (its memory is full, say).
void sample_on_ranks(dist::World& world, const Config& config, const model::Parameters& parameters,
                     std::int64_t count, const SamplingCalls& calls);

}  // namespace laterna::launch
