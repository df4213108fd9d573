#include "launch/training/observations.h"

#include <ATen/ATen.h>
#include <fmt/format.h>
#include <unistd.h>

#include <fstream>

#include "model/denoiser.h"
#include "model/diffusion.h"

namespace laterna::launch {

std::vector<monitoring::LateralFacts> lateral_facts(const model::ModelConfig& config,
                                                    const model::Parameters& parameters) {
  std::vector<monitoring::LateralFacts> facts;
  if (!config.lateral) return facts;
  for (std::int64_t layer = 0; layer < config.depth; ++layer) {
    if (!config.selects(layer)) continue;
    const std::string router = fmt::format("blocks.{}.router.lateral.", layer);
    const at::Tensor aggregation = parameters[router + "aggregation"].detach();  // [N, N]
    const double trace = aggregation.trace().item<double>();
    facts.push_back({layer, parameters[router + "gamma"].item<double>(),
                     parameters[router + "threshold"].item<double>(),
                     aggregation.sum().item<double>() - trace, trace});
  }
  return facts;
}

std::vector<monitoring::SpikeRate> spike_rates(const model::SpikeActivity& activity) {
  std::vector<monitoring::SpikeRate> rates;
  for (std::size_t layer = 0; layer < activity.layers().size(); ++layer) {
    for (const auto& [site, rate] : activity.layers()[layer].rates) {
      if (rate.neurons > 0) rates.push_back({std::int64_t(layer), site, rate.value()});
    }
  }
  return rates;
}

model::SpikeActivity watch_spikes(const Config& config, const model::Parameters& parameters,
                                  const at::Tensor& x0) {
  const at::NoGradGuard no_grad;
  const model::Denoiser denoiser(config.model, parameters, config.precision());
  const model::Diffusion diffusion(config.diffusion);
  const std::int64_t count = x0.size(0);
  model::SpikeActivity activity(config.model);
  // One by one, to keep only one image's activations in memory.
  for (std::int64_t i = 0; i < count; ++i) {
    model::Draws draws =
        diffusion.draw(config.training.seed, 0, i, 1, x0.sizes().slice(1).vec(), x0.scalar_type());
    draws.t.fill_((2 * i + 1) * diffusion.steps() / (2 * count));
    const at::Tensor x = diffusion.corrupt(x0.narrow(0, i, 1), draws);
    denoiser.forward(x, draws.t, denoiser.route(draws.t), activity.probe());
  }
  return activity;
}

std::int64_t resident_memory() {
  std::ifstream file("/proc/self/statm");
  std::int64_t all = 0, resident = 0;
  file >> all >> resident;
  return resident * sysconf(_SC_PAGESIZE);
}

}  // namespace laterna::launch
