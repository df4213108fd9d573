#include "launch/evaluation/sampling.h"

#include <ATen/ATen.h>
#include <fmt/format.h>

#include <exception>
#include <map>
#include <memory>

#include "launch/collective.h"
#include "model/denoiser.h"
#include "model/sampler.h"

namespace laterna::launch {
namespace {

/// A sampler together with the denoiser and the diffusion that it refers to.
class RunSampler {
 public:
  RunSampler(const Config& config, const model::Parameters& parameters, at::Device device)
      : denoiser_(config.model, parameters, config.precision()),
        diffusion_(config.diffusion),
        sampler_(denoiser_, diffusion_, config.sampler(),
                 {config.model.channels, config.model.image_size, config.model.image_size},
                 at::kFloat, device) {}
  RunSampler(const RunSampler&) = delete;
  RunSampler& operator=(const RunSampler&) = delete;

  at::Tensor run(std::int64_t chunk, const model::OnStep& on_step) const {
    return sampler_.run(chunk, on_step);
  }

 private:
  model::Denoiser denoiser_;
  model::Diffusion diffusion_;
  model::Sampler sampler_;
};

/// Needs only the candidates that the routers select at the sampler's timesteps.
Need selected_candidates(const Config& config) {
  return [config](const model::Parameters& shared) {
    const at::NoGradGuard no_grad;
    const model::Denoiser routers(config.model, shared, {});
    const auto steps = model::sampler_timesteps(config.diffusion.steps, config.sampling.steps);
    std::map<std::int64_t, at::Tensor> selected;  // [N] counts of each selecting layer
    for (const auto& layer : routers.route(at::tensor(steps, at::kLong))) {
      selected[layer.layer] = layer.mask.flatten(0, 1).sum(0);
    }
    return [selected](std::int64_t layer, std::int64_t candidate) {
      return selected.at(layer)[candidate].item<std::int64_t>() > 0;
    };
  };
}

}  // namespace

LoadedWeights load_sampled_weights(const RunWeights& weights, const Config& config,
                                   dist::World& world) {
  auto loaded = load_weights(weights, at::kFloat, world.device().torch(),
                             selected_candidates(config), [&] { world.heartbeat().touch(); });
  const auto differences = forbidden_differences(loaded.config, config);
  if (!differences.empty()) {
    throw UsageError(
        fmt::format("{} was {} in training and cannot be {} now; leave that setting out",
                    differences[0].key, differences[0].left, differences[0].right));
  }
  return loaded;
}

void sample_on_ranks(dist::World& world, const Config& config, const model::Parameters& parameters,
                     std::int64_t count, const SamplingCalls& calls) {
  std::unique_ptr<const RunSampler> sampler;
  run_collectively(world, [&] {
    sampler = std::make_unique<RunSampler>(config, parameters, world.device().torch());
  });
  const std::int64_t m = config.sampling.chunk, steps = config.sampling.steps;
  const std::int64_t chunks = (count + m - 1) / m;
  const std::int64_t rounds = (chunks + world.size() - 1) / world.size();
  for (std::int64_t round = 0; round < rounds; ++round) {
    SamplingStep at{round * world.size() + world.rank(), round * steps, rounds * steps};
    if (at.chunk >= chunks) at.chunk = -1;
    bool from_call = false;
    const auto on_step = [&](std::int64_t, const at::Tensor& x) {
      from_call = true;  // if on_step throws, it throws on all ranks
      calls.on_step(at, x);
      from_call = false;
      ++at.step;
    };
    at::Tensor images;
    std::exception_ptr failure;
    try {
      if (at.chunk >= 0) images = sampler->run(at.chunk, on_step);
    } catch (const std::exception&) {
      if (from_call) throw;
      failure = std::current_exception();
      at.chunk = -1;
    }
    while (at.step < (round + 1) * steps) on_step(0, {});
    run_collectively(world, [&] {
      if (failure) std::rethrow_exception(failure);
    });
    calls.on_round(at.chunk, images);
  }
}

}  // namespace laterna::launch
