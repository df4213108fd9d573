// Sampling on several ranks. In each round every rank takes the next whole chunk of images, so that
// an image depends only on the weights, the seed, its number and the chunk size (spec section 5).
#pragma once

#include <ATen/core/Tensor.h>

#include <functional>

#include "dist/world.h"
#include "launch/checkpoint/checkpoint.h"
#include "launch/config.h"
#include "model/parameters.h"

namespace laterna::launch {

/// Loads the weights that sampling as configured needs: of the candidates only those that the
/// routers select at one of the sampler's steps, to the world's device. Throws as load_weights()
/// does, and UsageError when `config` describes another model than the checkpoint.
LoadedWeights load_sampled_weights(const RunWeights& weights, const Config& config,
                                   dist::World& world);

/// A rank's progress in sampling. A rank without a chunk in a round (chunk -1) goes through the
/// same steps as the others.
struct SamplingStep {
  std::int64_t chunk;
  std::int64_t step, steps;  // counted over all rounds
};

struct SamplingCalls {
  /// Called before each denoising step, the same one on every rank, with its input x [m, C, H, W],
  /// m = sampling.chunk (undefined on a rank without a chunk). May be collective; an exception that
  /// it throws on all ranks ends the sampling.
  std::function<void(const SamplingStep& at, const at::Tensor& x)> on_step;
  /// Called after each round with the rank's images [m, C, H, W] in [-1, 1] (undefined on a rank
  /// without a chunk). May be collective.
  std::function<void(std::int64_t chunk, const at::Tensor& images)> on_round;
};

/// Collective. Draws images 0 .. count-1 as configured, and those that complete the last chunk, on
/// any number of ranks. `parameters` are those of load_sampled_weights(), on the world's device.
/// Throws CollectiveError when a rank fails (for example out of memory).
void sample_on_ranks(dist::World& world, const Config& config, const model::Parameters& parameters,
                     std::int64_t count, const SamplingCalls& calls);

}  // namespace laterna::launch
