#include "model/sampler.h"

#include <ATen/ATen.h>
#include <ATen/Dispatch.h>
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <cmath>
#include <stdexcept>

#include "data/philox.h"

namespace laterna::model {
namespace {

/// The state of a sampler at one step.
struct Step {
  double kept, next_kept;  // alpha_bar at this step and the next one (1 after the last step)
  double previous_kept;    // alpha_bar at the step before
  at::Tensor x, clean;     // x_t and the clipped prediction of x_0
  at::Tensor last_clean;   // the prediction at the step before; undefined at the first step
  std::function<at::Tensor()> noise;  // draws the noise of this step, in the shape of x
};

/// Ancestral step with variance beta_t; with fewer steps than the diffusion has, beta_t is that of
/// the coarser chain.
at::Tensor ddpm(const Step& s) {
  const double alpha = s.kept / s.next_kept, beta = 1 - alpha;
  const at::Tensor mean = s.clean * (std::sqrt(s.next_kept) * beta / (1 - s.kept)) +
                          s.x * (std::sqrt(alpha) * (1 - s.next_kept) / (1 - s.kept));
  return s.next_kept == 1 ? mean : mean + std::sqrt(beta) * s.noise();
}

at::Tensor ddim(const Step& s) {
  const at::Tensor noise = (s.x - std::sqrt(s.kept) * s.clean) / std::sqrt(1 - s.kept);
  return std::sqrt(s.next_kept) * s.clean + std::sqrt(1 - s.next_kept) * noise;
}

/// DPM-Solver++(2M) of Lu et al. (2022), algorithm 2, in its data-prediction form; the first and
/// the last step are of first order.
at::Tensor dpm_solver(const Step& s) {
  if (s.next_kept == 1) return s.clean;
  const auto half_log_snr = [](double kept) { return 0.5 * std::log(kept / (1 - kept)); };
  const double h = half_log_snr(s.next_kept) - half_log_snr(s.kept);
  at::Tensor direction = s.clean;
  if (s.last_clean.defined()) {
    const double r = (half_log_snr(s.kept) - half_log_snr(s.previous_kept)) / h;
    direction = (1 + 0.5 / r) * s.clean - (0.5 / r) * s.last_clean;
  }
  return std::sqrt((1 - s.next_kept) / (1 - s.kept)) * s.x -
         std::sqrt(s.next_kept) * std::expm1(-h) * direction;
}

/// A sampler: its name, and x at the next step.
struct Entry {
  const char* name;
  at::Tensor (*next)(const Step& s);
};
constexpr Entry kSamplers[] = {{"ddpm", ddpm}, {"ddim", ddim}, {"dpm-solver++", dpm_solver}};

const Entry& sampler_called(const std::string& name) {
  for (const auto& entry : kSamplers) {
    if (entry.name == name) return entry;
  }
  throw std::invalid_argument(
      fmt::format("unknown sampler {}; allowed: {}", name, fmt::join(sampler_names(), ", ")));
}

}  // namespace

std::vector<std::string> sampler_names() {
  std::vector<std::string> names;
  for (const auto& entry : kSamplers) names.emplace_back(entry.name);
  return names;
}

std::vector<std::int64_t> sampler_timesteps(std::int64_t diffusion_steps, std::int64_t count) {
  std::vector<std::int64_t> timesteps;
  for (std::int64_t i = 0; i < count; ++i) {
    const double share = count > 1 ? double(count - 1 - i) / double(count - 1) : 1.0;
    timesteps.push_back(std::llround(share * double(diffusion_steps - 1)));
  }
  return timesteps;
}

Sampler::Sampler(const Denoiser& denoiser, const Diffusion& diffusion,
                 const SamplerOptions& options, std::vector<std::int64_t> image_shape,
                 at::ScalarType dtype, at::Device device)
    : denoiser_(denoiser),
      diffusion_(diffusion),
      options_(options),
      shape_(std::move(image_shape)),
      dtype_(dtype),
      device_(device),
      timesteps_(sampler_timesteps(diffusion.steps(), options.steps)) {
  const at::NoGradGuard no_grad;
  table_ = denoiser.route(at::tensor(timesteps_, at::kLong));
}

at::Tensor Sampler::noise(std::int64_t c, std::int64_t draw) const {
  std::vector<std::int64_t> extents{options_.chunk};
  extents.insert(extents.end(), shape_.begin(), shape_.end());
  at::Tensor out = at::empty(extents, dtype_);
  const std::int64_t size = out.numel() / options_.chunk;
  AT_DISPATCH_FLOATING_TYPES(dtype_, "noise", [&] {
    for (std::int64_t i = 0; i < options_.chunk; ++i) {
      data::fill_normal(out.data_ptr<scalar_t>() + i * size, size, options_.seed,
                        data::Stream::sampling, draw,
                        static_cast<std::uint32_t>(c * options_.chunk + i));
    }
  });
  return out.to(device_);
}

at::Tensor Sampler::run(std::int64_t c, const OnStep& on_step) const {
  const at::NoGradGuard no_grad;
  const Entry& sampler = sampler_called(options_.sampler);
  Step s{};
  s.x = noise(c, 0);
  for (std::size_t i = 0; i < timesteps_.size(); ++i) {
    const auto at_step = static_cast<std::int64_t>(i);
    on_step(at_step, s.x);
    const at::Tensor t = at::full({options_.chunk}, timesteps_[i], at::kLong);
    const at::Tensor epsilon =
        denoiser_.forward(s.x, t, repeat(table_, at_step, options_.chunk));  // [chunk, C, H, W]
    s.previous_kept = s.kept;
    s.kept = diffusion_.alpha_bar(timesteps_[i]);
    s.next_kept = i + 1 < timesteps_.size() ? diffusion_.alpha_bar(timesteps_[i + 1]) : 1.0;
    s.clean = ((s.x - std::sqrt(1 - s.kept) * epsilon) / std::sqrt(s.kept)).clamp(-1, 1);
    s.noise = [&] { return noise(c, at_step + 1); };
    s.x = sampler.next(s);
    s.last_clean = s.clean;
  }
  return s.x;
}

}  // namespace laterna::model
