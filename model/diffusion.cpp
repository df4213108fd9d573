#include "model/diffusion.h"

#include <ATen/ATen.h>
#include <ATen/Dispatch.h>
#include <ATen/Parallel.h>

#include <algorithm>
#include <cmath>
#include <numeric>

#include "data/philox.h"

namespace laterna::model {
namespace {

constexpr double kMostSnr = 5;  // Min-SNR's gamma

/// Returns value(t) for each element of t [B], as float64 [B, 1, 1, 1].
template <typename Value>
at::Tensor of_each(const at::Tensor& t, const Value& value) {
  at::Tensor values = at::empty({t.size(0), 1, 1, 1}, at::kDouble);
  for (std::int64_t i = 0; i < t.size(0); ++i) {
    values.data_ptr<double>()[i] = value(t.const_data_ptr<std::int64_t>()[i]);
  }
  return values;
}

}  // namespace

Diffusion::Diffusion(const DiffusionConfig& config) {
  double product = 1;
  for (std::int64_t t = 0; t < config.steps; ++t) {
    const double share = config.steps > 1 ? double(t) / double(config.steps - 1) : 0;
    product *= 1 - (config.beta_first + (config.beta_last - config.beta_first) * share);
    alpha_bar_.push_back(product);
  }
}

Draws Diffusion::draw(std::uint64_t seed, std::uint64_t step, std::int64_t first,
                      std::int64_t count, const std::vector<std::int64_t>& shape,
                      at::ScalarType dtype) const {
  std::vector<std::int64_t> samples(static_cast<std::size_t>(count));
  std::iota(samples.begin(), samples.end(), first);
  return draw(seed, step, samples, shape, dtype);
}

Draws Diffusion::draw(std::uint64_t seed, std::uint64_t step,
                      const std::vector<std::int64_t>& samples,
                      const std::vector<std::int64_t>& shape, at::ScalarType dtype) const {
  const std::int64_t count = std::ssize(samples);
  std::vector<std::int64_t> extents{count};
  extents.insert(extents.end(), shape.begin(), shape.end());
  Draws draws{at::empty({count}, at::kLong), at::empty(extents, dtype)};
  auto* t = draws.t.data_ptr<std::int64_t>();
  const std::int64_t size = count ? draws.noise.numel() / count : 0;
  AT_DISPATCH_FLOATING_TYPES(dtype, "draw", [&] {
    auto* noise = draws.noise.data_ptr<scalar_t>();
    at::parallel_for(0, count, 1, [&](std::int64_t begin, std::int64_t end) {
      for (std::int64_t i = begin; i < end; ++i) {
        const auto sample = static_cast<std::uint32_t>(samples[i]);
        t[i] = data::random_below(static_cast<std::uint32_t>(steps()), seed, data::Stream::timestep,
                                  step, sample);
        data::fill_normal(noise + i * size, size, seed, data::Stream::noise, step, sample);
      }
    });
  });
  return draws;
}

at::Tensor Diffusion::corrupt(const at::Tensor& x0, const Draws& draws) const {
  const at::Tensor signal = of_each(draws.t, [&](auto t) { return std::sqrt(alpha_bar(t)); });
  const at::Tensor noise = of_each(draws.t, [&](auto t) { return std::sqrt(1 - alpha_bar(t)); });
  const at::Tensor added = draws.noise.to(x0.device()) * noise.to(x0.options());
  return x0 * signal.to(x0.options()) + added;  // eq 5
}

Loss Diffusion::loss(const at::Tensor& epsilon, const Draws& draws, std::int64_t elements,
                     bool min_snr) const {
  const at::Tensor squares = (draws.noise.to(epsilon.device()) - epsilon).square();  // eq 4
  const at::Tensor mean = squares.sum() / double(elements);
  if (!min_snr) return {mean, mean};
  const at::Tensor weights = min_snr_weights(draws.t).to(squares.options());
  return {mean, (squares * weights).sum() / double(elements)};
}

at::Tensor Diffusion::min_snr_weights(const at::Tensor& t) const {
  // This form avoids dividing by an SNR that underflows to zero.
  return of_each(t, [&](auto step) {
    return std::min(1.0, kMostSnr * (1 - alpha_bar(step)) / alpha_bar(step));
  });
}

at::Tensor to_signal(const at::Tensor& pixels, at::ScalarType dtype) {
  return pixels.to(dtype) / 127.5 - 1;
}

at::Tensor to_pixels(const at::Tensor& signal) {
  return (signal * 127.5 + 127.5).round().clamp(0, 255).to(at::kByte);
}

}  // namespace laterna::model
