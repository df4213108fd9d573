// The forward diffusion process (eqs 4-5): the random draws of a training sample, the corruption of
// an image, and the loss. Every draw is a function of (seed, step, index in the global batch), so
// the split over ranks and micro-batches changes nothing.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <vector>

namespace laterna::model {

struct DiffusionConfig {
  std::int64_t steps = 1000;
  double beta_first = 1e-4, beta_last = 0.02;
};

/// The random draws for some samples of a training step.
struct Draws {
  at::Tensor t;      // int64 [count], 0 .. steps-1
  at::Tensor noise;  // [count, C, H, W] standard normal
};

/// The loss of some samples of a training step: sums over these samples, divided by the number of
/// elements of the global batch.
struct Loss {
  at::Tensor mean;       // of the squared errors, once summed over the global batch; this is logged
  at::Tensor minimised;  // the same with each sample weighted; this carries the gradient
};

class Diffusion {
 public:
  explicit Diffusion(const DiffusionConfig& config);

  std::int64_t steps() const { return static_cast<std::int64_t>(alpha_bar_.size()); }
  /// Returns prod (1 - beta_s) over s <= t; alpha_bar(-1) is 1, the clean image.
  double alpha_bar(std::int64_t t) const { return t < 0 ? 1.0 : alpha_bar_[t]; }

  /// Returns the draws for `samples` (indices in the global batch) of a step; `shape` is [C, H, W];
  /// dtype is float32 or float64.
  Draws draw(std::uint64_t seed, std::uint64_t step, const std::vector<std::int64_t>& samples,
             const std::vector<std::int64_t>& shape, at::ScalarType dtype) const;
  /// Returns the draws for samples first .. first + count - 1.
  Draws draw(std::uint64_t seed, std::uint64_t step, std::int64_t first, std::int64_t count,
             const std::vector<std::int64_t>& shape, at::ScalarType dtype) const;

  /// Returns x_t = sqrt(alpha_bar) x_0 + sqrt(1 - alpha_bar) noise (eq 5) on the device of x0. x0
  /// and noise: [B, C, H, W]; t: [B] on the CPU.
  at::Tensor corrupt(const at::Tensor& x0, const Draws& draws) const;

  /// Returns the loss of epsilon [B, C, H, W], the noise that the denoiser predicts, as part of a
  /// global batch of `elements` elements. With `min_snr` samples are weighted by min_snr_weights(),
  /// otherwise equally.
  Loss loss(const at::Tensor& epsilon, const Draws& draws, std::int64_t elements,
            bool min_snr) const;
  /// Returns min(SNR, 5) / SNR for each t, SNR = alpha_bar / (1 - alpha_bar) (Min-SNR for predicted
  /// noise, Hang et al. 2023, arXiv 2303.09556).
  /// t: int64 [B] on the CPU -> float64 [B, 1, 1, 1], 0 .. 1.
  at::Tensor min_snr_weights(const at::Tensor& t) const;

 private:
  std::vector<double> alpha_bar_;
};

/// Maps pixels 0..255 to [-1, 1], as `dtype`.
at::Tensor to_signal(const at::Tensor& pixels, at::ScalarType dtype);
/// Returns round(127.5 x + 127.5) clipped to 0..255, as uint8.
at::Tensor to_pixels(const at::Tensor& signal);

}  // namespace laterna::model
