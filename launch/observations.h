// What a training step shows of the model besides its loss: the routers' lateral connections and
// the neurons' firing rates. Looked at every so many steps; metrics, TensorBoard and the log show
// it.
#pragma once

#include <vector>

#include "launch/config.h"
#include "model/parameters.h"
#include "model/spike_activity.h"
#include "monitoring/step_record.h"

namespace laterna::launch {

/// Of the selecting layers, in order; empty without lateral connections (eqs 10-12).
std::vector<monitoring::LateralFacts> lateral_facts(const model::ModelConfig& config,
                                                    const model::Parameters& parameters);

/// By layer and site, where the pass that was watched had neurons.
std::vector<monitoring::SpikeRate> spike_rates(const model::SpikeActivity& activity);

/// Calls of the model on images x0 [B, C, H, W], each at another of B diffusion steps that are
/// spread evenly over all; the noise is a function of training.seed.
model::SpikeActivity watch_spikes(const Config& config, const model::Parameters& parameters,
                                  const at::Tensor& x0);

/// The memory that this process has of the host's, in bytes.
std::int64_t resident_memory();

}  // namespace laterna::launch
