#include "launch/sampling.h"

#include <ATen/ATen.h>
#include <fmt/format.h>

#include <map>

namespace laterna::launch {
namespace {

/// The others are not read.
Need visited_candidates(const Config& config) {
  return [config](const model::Parameters& shared) {
    const at::NoGradGuard no_grad;
    const model::Denoiser routers(config.model, shared, {});
    const auto steps = model::visited_steps(config.diffusion.steps, config.sampling.steps);
    std::map<std::int64_t, at::Tensor> visited;  // [N] of each selecting layer
    for (const auto& layer : routers.route(at::tensor(steps, at::kLong))) {
      visited[layer.layer] = layer.mask.flatten(0, 1).sum(0);
    }
    return [visited](std::int64_t layer, std::int64_t candidate) {
      return visited.at(layer)[candidate].item<std::int64_t>() > 0;
    };
  };
}

}  // namespace

RunSampler::RunSampler(const Config& config, const model::Parameters& parameters, at::Device device)
    : denoiser_(config.model, parameters, config.precision()),
      diffusion_(config.diffusion),
      sampler_(denoiser_, diffusion_, config.sampler(),
               {config.model.channels, config.model.image_size, config.model.image_size},
               at::kFloat, device) {}

LoadedWeights load_sampled_weights(const RunWeights& weights, const Config& config,
                                   at::Device device) {
  auto loaded = load_weights(weights, at::kFloat, device, visited_candidates(config));
  const auto differences = forbidden_differences(loaded.config, config);
  if (!differences.empty()) {
    throw UsageError(fmt::format("{} was {} in training and cannot be {} now; leave it out",
                                 differences[0].key, differences[0].left, differences[0].right));
  }
  return loaded;
}

void sample_on_ranks(const dist::World& world, const Config& config, const model::Sampler& sampler,
                     std::int64_t count, const SamplingCalls& calls) {
  const std::int64_t m = config.sampling.chunk, steps = config.sampling.steps;
  const std::int64_t chunks = (count + m - 1) / m;
  const std::int64_t rounds = (chunks + world.size() - 1) / world.size();
  for (std::int64_t round = 0; round < rounds; ++round) {
    SamplingStep at{round * world.size() + world.rank(), round * steps, rounds * steps};
    const auto on_step = [&](std::int64_t, const at::Tensor& x) {
      calls.on_step(at, x);
      ++at.step;
    };
    at::Tensor images;
    if (at.chunk < chunks) {
      images = sampler.run(at.chunk, on_step);
    } else {
      at.chunk = -1;
      for (std::int64_t step = 0; step < steps; ++step) on_step(step, {});
    }
    calls.on_round(at.chunk, images);
  }
}

}  // namespace laterna::launch
