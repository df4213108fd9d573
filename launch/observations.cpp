#include "launch/observations.h"

#include <ATen/ATen.h>
#include <fmt/format.h>
#include <unistd.h>

#include <fstream>

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

std::int64_t resident_memory() {
  std::ifstream file("/proc/self/statm");
  std::int64_t all = 0, resident = 0;
  file >> all >> resident;
  return resident * sysconf(_SC_PAGESIZE);
}

}  // namespace laterna::launch
