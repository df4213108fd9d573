// Compares forward process, samplers and optimiser with their formulas, written out a second time.
#include "model/diffusion.h"

#include <ATen/Parallel.h>

#include <cmath>

#include "data/philox.h"
#include "model/denoiser.h"
#include "model/initialise.h"
#include "model/optimizer.h"
#include "model/sampler.h"
#include "tests/model/tensors.h"

namespace laterna::model {
namespace {

const std::vector<std::int64_t> kShape{1, 8, 8};

// --- Forward process ---

TEST(Diffusion, AlphaBarIsTheProduct) {
  const Diffusion diffusion({});
  ASSERT_EQ(diffusion.steps(), 1000);
  EXPECT_EQ(diffusion.alpha_bar(-1), 1);
  long double product = 1;
  for (int t = 0; t < 1000; ++t) {
    product *= 1 - (1e-4L + (0.02L - 1e-4L) * t / 999);
    EXPECT_NEAR(diffusion.alpha_bar(t) / static_cast<double>(product), 1, 1e-12);
  }
  EXPECT_NEAR(diffusion.alpha_bar(999), 4.04e-5, 1e-6);  // as published for this schedule
  EXPECT_EQ(Diffusion({1, 0.1, 0.3}).alpha_bar(0), 1 - 0.1);
}

TEST(Diffusion, CorruptsByEquation5) {
  const Diffusion diffusion({});
  const auto draws = diffusion.draw(1, 2, 0, 6, {3, 4, 4}, at::kDouble);
  const at::Tensor x0 = at::rand({6, 3, 4, 4}, at::kDouble) * 2 - 1;
  const at::Tensor x = diffusion.corrupt(x0, draws);
  for (std::int64_t i = 0; i < 6; ++i) {
    const double kept = diffusion.alpha_bar(draws.t[i].item<std::int64_t>());
    expect_close(x[i], std::sqrt(kept) * x0[i] + std::sqrt(1 - kept) * draws.noise[i], 1e-15,
                 fmt::format("sample {}", i));
  }
  EXPECT_EQ(diffusion.corrupt(x0.to(at::kFloat), {draws.t, draws.noise.to(at::kFloat)}).dtype(),
            at::kFloat);
}

TEST(Diffusion, MinSnrWeighsByTheSignalToNoiseRatio) {
  const Diffusion diffusion({});
  const at::Tensor weights = diffusion.min_snr_weights(at::arange(1000, at::kLong));
  ASSERT_EQ(weights.sizes(), (std::vector<std::int64_t>{1000, 1, 1, 1}));
  int below_one = 0;
  for (std::int64_t t = 0; t < 1000; ++t) {
    const double snr = diffusion.alpha_bar(t) / (1 - diffusion.alpha_bar(t));
    const double weight = weights[t].item<double>();
    EXPECT_NEAR(weight / (std::min(snr, 5.0) / snr), 1, 1e-14) << t;
    below_one += weight < 1;
  }
  EXPECT_EQ(below_one, 130);  // the steps with alpha_bar above 5/6
  EXPECT_NEAR(weights[0].item<double>(), 5e-4, 1e-6);
  // At the last step alpha_bar underflows to 0, and the SNR with it.
  const Diffusion gone({400, 0.999, 0.999});
  EXPECT_EQ(gone.alpha_bar(399), 0);
  EXPECT_EQ(gone.min_snr_weights(at::tensor({399}, at::kLong)).item<double>(), 1);
  EXPECT_EQ(diffusion.min_snr_weights(at::empty({0}, at::kLong)).numel(), 0);
}

TEST(Diffusion, DrawsAreFunctionsOfSeedStepAndIndex) {
  const Diffusion diffusion({});
  const auto all = diffusion.draw(5, 9, 0, 20, kShape, at::kFloat);
  for (const auto& [first, count] : {std::pair{0, 20}, std::pair{3, 1}, std::pair{13, 7}}) {
    const auto part = diffusion.draw(5, 9, first, count, kShape, at::kFloat);
    EXPECT_TRUE(at::equal(part.t, all.t.narrow(0, first, count)));
    EXPECT_TRUE(at::equal(part.noise, all.noise.narrow(0, first, count)));
  }
  const auto wide = diffusion.draw(5, 9, 0, 20, kShape, at::kDouble);
  EXPECT_TRUE(at::equal(wide.noise.to(at::kFloat), all.noise));
  EXPECT_TRUE(at::equal(wide.t, all.t));
  for (const auto& other : {diffusion.draw(6, 9, 0, 20, kShape, at::kFloat),
                            diffusion.draw(5, 10, 0, 20, kShape, at::kFloat)}) {
    EXPECT_FALSE(at::equal(other.t, all.t));
    EXPECT_FALSE(at::equal(other.noise, all.noise));
  }
  const auto none = diffusion.draw(5, 9, 20, 0, kShape, at::kFloat);
  EXPECT_EQ(none.noise.sizes(), (std::vector<std::int64_t>{0, 1, 8, 8}));
}

TEST(Diffusion, DrawsHaveTheRightDistribution) {
  const Diffusion diffusion({});
  const auto draws = diffusion.draw(0, 0, 0, 20000, {1, 2, 2}, at::kDouble);
  EXPECT_EQ(draws.t.min().item<std::int64_t>(), 0);
  EXPECT_EQ(draws.t.max().item<std::int64_t>(), 999);
  const at::Tensor t = draws.t.to(at::kDouble);
  EXPECT_NEAR(t.mean().item<double>(), 499.5, 5 * 288.7 / std::sqrt(2e4));
  EXPECT_NEAR(t.std().item<double>(), 288.7, 5);
  const double samples = 8e4;
  EXPECT_NEAR(draws.noise.mean().item<double>(), 0, 5 / std::sqrt(samples));
  EXPECT_NEAR(draws.noise.square().mean().item<double>(), 1, 5 * std::sqrt(2 / samples));
  EXPECT_NEAR(draws.noise.pow(4).mean().item<double>(), 3, 5 * std::sqrt(96 / samples));
  // Neither pixels nor consecutive samples are correlated.
  const at::Tensor rows = draws.noise.view({-1, 4});
  EXPECT_LT(at::mm(rows.t(), rows).div(2e4).sub(at::eye(4, at::kDouble)).abs().max().item<double>(),
            0.06);
  const at::Tensor next = rows.slice(0, 1) * rows.slice(0, 0, -1);
  EXPECT_NEAR(next.mean().item<double>(), 0, 5 / std::sqrt(samples));
  EXPECT_EQ(Diffusion({3, 0.1, 0.2}).draw(0, 0, 0, 99, {1}, at::kFloat).t.max().item<int>(), 2);
}

TEST(Pixels, RoundTrip) {
  const at::Tensor pixels = at::arange(256, at::kByte);
  for (const auto dtype : {at::kFloat, at::kDouble}) {
    const at::Tensor signal = to_signal(pixels, dtype);
    EXPECT_EQ(signal[0].item<double>(), -1);
    EXPECT_EQ(signal[255].item<double>(), 1);
    EXPECT_TRUE(at::equal(to_pixels(signal), pixels));
  }
  EXPECT_TRUE(at::equal(to_pixels(at::tensor({-7.0, 7.0, 0.003, 0.005})),
                        at::tensor({0, 255, 128, 128}, at::kByte)));
}

// --- Samplers ---

TEST(Samplers, TakeEvenlySpacedTimesteps) {
  EXPECT_EQ(sampler_timesteps(5, 5), (std::vector<std::int64_t>{4, 3, 2, 1, 0}));
  EXPECT_EQ(sampler_timesteps(1000, 3), (std::vector<std::int64_t>{999, 500, 0}));
  EXPECT_EQ(sampler_timesteps(1000, 1), (std::vector<std::int64_t>{999}));
  for (const std::int64_t count : {2, 7, 50, 100, 999, 1000}) {
    const auto timesteps = sampler_timesteps(1000, count);
    ASSERT_EQ(static_cast<std::int64_t>(timesteps.size()), count);
    EXPECT_EQ(timesteps.front(), 999);
    EXPECT_EQ(timesteps.back(), 0);
    for (std::size_t i = 1; i < timesteps.size(); ++i) EXPECT_LT(timesteps[i], timesteps[i - 1]);
  }
}

/// A tiny model in float64, with a diffusion so short that its noisiest images still contain
/// signal.
struct Tiny {
  Tiny() : parameters(parameter_specs(config()), at::kDouble, false) {
    initialise(parameters, config(), 1);
  }
  static ModelConfig config() {
    ModelConfig c;
    c.image_size = 8, c.patch = 4, c.width = 8, c.depth = 2, c.heads = 2;
    c.diffusion_steps = 60;
    return c;
  }
  /// Gives the head non-zero weights, so that the output depends on the stream, and makes the
  /// neurons fire.
  void listen() {
    at::manual_seed(2);
    parameters["head.weight"].copy_(at::randn({16, 8}, at::kDouble) / 3);
    for (int r = 0; r < 2; ++r) {
      parameters[fmt::format("blocks.{}.candidates.norm.weight", r)].fill_(2);
      parameters[fmt::format("blocks.{}.router.lateral.gamma", r)].fill_(1);
    }
  }
  at::Tensor sample(SamplerOptions options, std::int64_t chunk, const OnStep& on_step) const {
    return Sampler(denoiser, diffusion, options, kShape, at::kDouble).run(chunk, on_step);
  }

  Parameters parameters;
  Denoiser denoiser{config(), parameters, {true, false}};
  Diffusion diffusion{{60, 1e-4, 0.05}};
};

const std::vector<std::string> kSamplers = {"ddpm", "ddim", "dpm-solver++"};
const OnStep kIgnore = [](std::int64_t, const at::Tensor&) {};

// A head of weight zero predicts the same noise c for every patch at every step. Then
// x0 = (x - s c) / a does not change along the path, so both solvers of the probability flow are
// exact with any number of steps, and clipped values stay clipped. c differs between the pixels of
// a patch: the rows of the head are in the order patch row, patch column.
TEST(Samplers, MatchTheClosedFormForConstantNoise) {
  const Tiny tiny;
  const at::Tensor c = at::linspace(-1, 1, 16, at::kDouble);
  tiny.parameters["head.bias"].copy_(c);
  const double kept = tiny.diffusion.alpha_bar(59);
  for (const char* sampler : {"ddim", "dpm-solver++"}) {
    for (const std::int64_t steps : {1, 2, 9, 60}) {
      at::Tensor start;
      const at::Tensor out = tiny.sample({sampler, steps, 4, 5}, 1, [&](std::int64_t i, auto& x) {
        if (i == 0) start = x.clone();
      });
      const at::Tensor noise = c.view({4, 4}).repeat({2, 2});
      const at::Tensor exact = (start - std::sqrt(1 - kept) * noise) / std::sqrt(kept);
      expect_close(out, exact.clamp(-1, 1), 1e-10, fmt::format("{} {}", sampler, steps));
      const double inside = exact.abs().lt(1).to(at::kDouble).mean().item<double>();
      EXPECT_GT(inside, 0.1);  // some pixels are clipped, some are not
      EXPECT_LT(inside, 0.9);
    }
  }
}

/// Returns x at the next sampler timestep by the formulas of Ho et al. (2020), Song et al. (2021)
/// with eta 0, and Lu et al. (2022), equations (2M) of algorithm 2. `older`: the clean image
/// predicted at the step before.
at::Tensor next_x(const std::string& sampler, const Diffusion& d,
                  const std::vector<std::int64_t>& timesteps, std::size_t i, const at::Tensor& x,
                  const at::Tensor& clean, const at::Tensor& older, const at::Tensor& z) {
  const auto kept_at = [&](std::size_t j) {
    return j < timesteps.size() ? d.alpha_bar(timesteps[j]) : 1.0;
  };
  const double here = kept_at(i), next = kept_at(i + 1);
  if (next == 1) return clean;
  if (sampler == "ddpm") {
    const double beta = 1 - here / next;
    return std::sqrt(next) * beta / (1 - here) * clean +
           std::sqrt(1 - beta) * (1 - next) / (1 - here) * x + std::sqrt(beta) * z;
  }
  if (sampler == "ddim") {
    const at::Tensor noise = (x - std::sqrt(here) * clean) / std::sqrt(1 - here);
    return std::sqrt(next) * clean + std::sqrt(1 - next) * noise;
  }
  const auto lambda = [&](std::size_t j) {
    return std::log(std::sqrt(kept_at(j)) / std::sqrt(1 - kept_at(j)));
  };
  const double h = lambda(i + 1) - lambda(i);
  at::Tensor direction = clean;
  if (i > 0) {
    const double r = (lambda(i) - lambda(i - 1)) / h;
    direction = (1 + 1 / (2 * r)) * clean - 1 / (2 * r) * older;
  }
  return std::sqrt(1 - next) / std::sqrt(1 - here) * x -
         std::sqrt(next) * (std::exp(-h) - 1) * direction;
}

TEST(Samplers, FollowTheirFormulasStepByStep) {
  Tiny tiny;
  tiny.listen();
  const std::int64_t chunk = 3, c = 2;
  for (const auto& sampler : kSamplers) {
    const auto timesteps = sampler_timesteps(60, 12);
    std::vector<at::Tensor> seen;
    seen.push_back(tiny.sample({sampler, 12, 7, chunk}, c, [&](std::int64_t i, auto& x) {
      EXPECT_EQ(i, static_cast<std::int64_t>(seen.size()));
      seen.push_back(x.clone());
    }));
    ASSERT_EQ(seen.size(), 13U);
    const auto noise = [&](std::uint64_t draw) {
      at::Tensor z = at::empty({chunk, 1, 8, 8}, at::kDouble);
      for (std::int64_t i = 0; i < chunk; ++i) {
        data::fill_normal(z[i].data_ptr<double>(), 64, 7, data::Stream::sampling, draw,
                          static_cast<std::uint32_t>(c * chunk + i));
      }
      return z;
    };
    EXPECT_TRUE(at::equal(seen[0], noise(0)));
    at::Tensor older;
    for (std::size_t i = 0; i < timesteps.size(); ++i) {
      const at::Tensor t = at::full({chunk}, timesteps[i], at::kLong);
      const at::Tensor epsilon = tiny.denoiser.forward(seen[i], t, tiny.denoiser.route(t));
      const double kept = tiny.diffusion.alpha_bar(timesteps[i]);
      const at::Tensor clean =
          ((seen[i] - std::sqrt(1 - kept) * epsilon) / std::sqrt(kept)).clamp(-1, 1);
      expect_close(
          seen[i + 1],
          next_x(sampler, tiny.diffusion, timesteps, i, seen[i], clean, older, noise(i + 1)), 1e-10,
          fmt::format("{} step {}", sampler, i));
      older = clean;
    }
    EXPECT_LE(seen.back().abs().max().item<double>(), 1);
  }
  EXPECT_THROW(tiny.sample({"euler", 3, 0, 1}, 0, kIgnore), std::invalid_argument);
}

// A chunk has the same bits from any sampler object and in any order of chunks. Another chunk size
// changes only which images share a matrix product: the initial noise is the same, the result
// differs by rounding.
TEST(Samplers, ImagesDependOnlyOnSeedNumberAndChunkSize) {
  Tiny tiny;
  tiny.listen();
  for (const auto& sampler : kSamplers) {
    const SamplerOptions options{sampler, 6, 3, 4};
    const Sampler first(tiny.denoiser, tiny.diffusion, options, kShape, at::kDouble);
    const Sampler second(tiny.denoiser, tiny.diffusion, options, kShape, at::kDouble);
    std::vector<at::Tensor> chunks;
    for (std::int64_t c = 0; c < 3; ++c) chunks.push_back(first.run(c, kIgnore));
    for (const std::int64_t c : {2, 0, 1}) {
      EXPECT_TRUE(at::equal(second.run(c, kIgnore), chunks[static_cast<std::size_t>(c)]));
    }
    EXPECT_FALSE(at::equal(chunks[0], chunks[1]));
    const at::Tensor whole = tiny.sample({sampler, 6, 3, 12}, 0, kIgnore);
    expect_close(whole, at::cat(chunks), 1e-9, sampler);
    EXPECT_FALSE(at::equal(tiny.sample({sampler, 6, 4, 4}, 0, kIgnore), chunks[0]));
  }
}

// --- Optimiser ---

void expect_adamw(at::ScalarType dtype, double tolerance) {
  const auto config = Tiny::config();
  const Parameters parameters(parameter_specs(config), dtype, true);
  initialise(parameters, config, 0);
  Optimizer optimizer(parameters, 0.3);
  EXPECT_TRUE(at::equal(optimizer.average(), parameters.values()));
  at::Tensor w = parameters.values().to(at::kDouble), average = w.clone();
  at::Tensor m = at::zeros_like(w), v = at::zeros_like(w);
  at::manual_seed(4);
  for (int n = 0; n < 5; ++n) {
    const double rate = 0.01 / (n + 1), scale = n % 2 ? 1 : 0.3;
    parameters.gradient().copy_(at::randn(w.sizes()) * at::rand(w.sizes()).pow(8));
    const at::Tensor g = parameters.gradient().to(at::kDouble) * scale;
    m = 0.9 * m + 0.1 * g;
    v = 0.999 * v + 0.001 * g * g;
    const at::Tensor root = (v / (1 - std::pow(0.999, n + 1))).sqrt();
    w = w - rate * (m / (1 - std::pow(0.9, n + 1))) / (root + 1e-8);
    const double decay = std::min(0.3, (1.0 + n) / (10.0 + n));
    average = decay * average + (1 - decay) * w;
    EXPECT_EQ(optimizer.updates(), n);
    optimizer.step(rate, scale);
    expect_close(parameters.values(), w, tolerance, "weights");
    expect_close(optimizer.first_moment(), m, tolerance, "first moment");
    expect_close(optimizer.second_moment(), v, tolerance, "second moment");
    expect_close(optimizer.average(), average, tolerance, "average");
  }
}

TEST(Optimizer, IsAdamWWithARunningAverage) {
  expect_adamw(at::kDouble, 1e-14);
  expect_adamw(at::kFloat, 2e-6);
}

TEST(Optimizer, ResumesFromItsState) {
  const auto config = Tiny::config();
  const Parameters one(parameter_specs(config), at::kDouble, true);
  const Parameters other(parameter_specs(config), at::kDouble, true);
  Optimizer first(one, 0.9999), second(other, 0.9999);
  one.gradient().fill_(1);
  for (int n = 0; n < 3; ++n) first.step(0.1, 1);
  other.values().copy_(one.values());
  second.first_moment().copy_(first.first_moment());
  second.second_moment().copy_(first.second_moment());
  second.average().copy_(first.average());
  second.set_updates(3);
  other.gradient().fill_(1);
  first.step(0.1, 1);
  second.step(0.1, 1);
  EXPECT_TRUE(at::equal(one.values(), other.values()));
  EXPECT_TRUE(at::equal(first.average(), second.average()));
}

TEST(SumOfSquares, HasTheSameBitsForAnyNumberOfThreads) {
  at::manual_seed(3);
  const int threads = at::get_num_threads();
  for (const std::int64_t size : {0, 1, 9, 32768, 200003}) {
    for (const auto dtype : {at::kFloat, at::kDouble}) {
      const at::Tensor flat = at::randn({size}, dtype);
      const double sum = sum_of_squares(flat);
      EXPECT_NEAR(sum, flat.to(at::kDouble).square().sum().item<double>(), 1e-12 * (1 + sum));
      for (const int n : {1, 2, 3}) {
        at::set_num_threads(n);
        EXPECT_EQ(sum_of_squares(flat), sum);
      }
      at::set_num_threads(threads);
    }
  }
}

}  // namespace
}  // namespace laterna::model
