// The samplers, which turn noise into images: ancestral DDPM (variance beta), DDIM (no noise) and
// DPM-Solver++(2M), each on an evenly spaced subset of the diffusion steps. The clean image
// predicted at each step is clipped to [-1, 1]. Samples are generated in fixed chunks, so sample i
// is a function of weights, seed, i and chunk size, for any number of ranks (spec section 5).
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "model/denoiser.h"
#include "model/diffusion.h"

namespace laterna::model {

struct SamplerOptions {
  std::string sampler = "ddpm";  // one of sampler_names()
  std::int64_t steps = 1000;
  std::uint64_t seed = 0;
  std::int64_t chunk = 64;
};

/// Returns the names of the samplers, the table of which is in sampler.cpp.
std::vector<std::string> sampler_names();

/// Returns the diffusion steps at which a sampler of `count` steps evaluates the model, from the
/// noisiest down to 0; for `count` 1 only the noisiest.
std::vector<std::int64_t> sampler_timesteps(std::int64_t diffusion_steps, std::int64_t count);

/// Called before each step with the step's number, from 0, and its images x_t [chunk, C, H, W].
using OnStep = std::function<void(std::int64_t step, const at::Tensor& x)>;

class Sampler {
 public:
  /// Computes the routing of all steps at once, as all images share t_d. `device`: the denoiser's.
  Sampler(const Denoiser& denoiser, const Diffusion& diffusion, const SamplerOptions& options,
          std::vector<std::int64_t> image_shape, at::ScalarType dtype,
          at::Device device = at::kCPU);

  /// Returns images chunk*c .. chunk*c + chunk-1 of the seed: [chunk, C, H, W] in [-1, 1].
  at::Tensor run(std::int64_t c, const OnStep& on_step) const;

 private:
  at::Tensor noise(std::int64_t c, std::int64_t draw) const;

  const Denoiser& denoiser_;
  const Diffusion& diffusion_;
  SamplerOptions options_;
  std::vector<std::int64_t> shape_;
  at::ScalarType dtype_;
  at::Device device_;
  std::vector<std::int64_t> timesteps_;
  Routing table_;  // the routing of all steps; the batch dimension is the timesteps
};

}  // namespace laterna::model
