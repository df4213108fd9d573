// For tests: a tiny model that selects in three layers, and its parameters at the start.
#pragma once

#include "model/initialise.h"

namespace laterna::model {

inline ModelConfig tiny() {
  ModelConfig config;
  config.image_size = 4, config.width = 34, config.depth = 3, config.heads = 2;
  config.hidden_ratio = 1, config.spiking_steps = 4, config.diffusion_steps = 50;
  return config;
}

inline Parameters initialised(const ModelConfig& config, std::uint64_t seed,
                              at::ScalarType dtype = at::kDouble) {
  Parameters parameters(parameter_specs(config), dtype, true);
  initialise(parameters, config, seed);
  return parameters;
}

}  // namespace laterna::model
