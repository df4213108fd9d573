// The start values of a model.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "model/model_config.h"
#include "model/parameters.h"

namespace laterna::model {

/// Returns the names of Lambda's start values, the table of which is in initialise.cpp.
std::vector<std::string> aggregation_starts();

/// Sets the start values, a pure function of the seed. By spec section 1 the head is zero,
/// time.weight holds sinusoids, the router's weights are normal with variance 1 / mean_t
/// |SiLU(e_t)|^2, and gamma and Lambda are as configured. Where the spec is silent: norms have
/// weight one and bias zero, except bias 0.7 in the norms of q, k and v; positions are normal with
/// deviation 2; the embedding is uniform, scaled so that pixels of unit variance have unit variance
/// in the residual stream; all other weights are uniform (Glorot), all other biases zero.
void initialise(const Parameters& parameters, const ModelConfig& config, std::uint64_t seed);

}  // namespace laterna::model
