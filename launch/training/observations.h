// What training observes of the model besides the loss: the routers' lateral connections and the
// neurons' firing rates. Recorded every kLookSteps steps (trainer.cpp) and shown by metrics,
// TensorBoard and the log.
#pragma once

#include <vector>

#include "launch/config.h"
#include "model/parameters.h"
#include "model/probes/spike_activity.h"
#include "monitoring/telemetry/step_record.h"

namespace laterna::launch {

/// Returns gamma, the threshold and Lambda's off-diagonal sum and trace (eqs 10-12) of each
/// selecting layer, in order; empty when the model has no lateral connections.
std::vector<monitoring::LateralFacts> lateral_facts(const model::ModelConfig& config,
                                                    const model::Parameters& parameters);

/// Returns the firing rates by layer and site, without sites that had no neurons in the observed
/// passes.
std::vector<monitoring::SpikeRate> spike_rates(const model::SpikeActivity& activity);

/// Runs the model on each image of x0 [B, C, H, W], image i at the i-th of B evenly spaced
/// diffusion steps, and returns the activity of all B passes. The noise is a function of
/// training.seed.
model::SpikeActivity watch_spikes(const Config& config, const model::Parameters& parameters,
                                  const at::Tensor& x0);

/// Returns the resident memory of this process in bytes.
std::int64_t resident_memory();

}  // namespace laterna::launch
