// The table of all configuration keys: name, allowed values, meaning, and the field of Config.
#pragma once

#include <cmath>
#include <limits>
#include <string>
#include <utility>
#include <vector>

#include "launch/config.h"
#include "model/initialise.h"
#include "model/sampler.h"
#include "model/spiking/neuron.h"

namespace laterna::launch {

inline constexpr double kInfinity = std::numeric_limits<double>::infinity();

/// The values that a key allows. Numbers: [low, high], or without `low` itself if `above_low`.
/// Strings: one of `words`, or any string if there are none.
struct Allowed {
  double low = 0, high = kInfinity;
  bool above_low = false;
  std::vector<std::string> words;
  bool may_differ = false;  // a run may resume with another value

  Allowed or_other_later() && {
    may_differ = true;
    return std::move(*this);
  }
};

inline Allowed anything() { return {}; }
inline Allowed within(double low, double high) { return {low, high, false, {}, false}; }
inline Allowed at_least(double low) { return within(low, kInfinity); }
inline Allowed above(double low, double high = kInfinity) { return {low, high, true, {}, false}; }
inline Allowed one_of(std::vector<std::string> words) {
  return {0, 0, false, std::move(words), false};
}

inline constexpr double kMostSamples = 1 << 24, kMostSteps = 1e12;

/// A key of the configuration. Its default is that of the field in Config.
struct Key {
  std::string name;  // "table.key"
  Allowed allowed;
  const char* meaning;
};

/// Calls f(key, field of `c`) for every key, in the order of printing. Reading, printing,
/// comparing, explaining and the error messages all follow this table.
template <typename ConfigType, typename Function>
void for_each_key(ConfigType& c, const Function& f) {
  f(Key{"model.image_size", within(1, 4096), "Height and width of the images in pixels."},
    c.model.image_size);
  f(Key{"model.channels", within(1, 3), "Channels of the images: 1 (grey) or 3 (colour)."},
    c.model.channels);
  f(Key{"model.patch", within(1, 4096),
        "Height and width of a patch in pixels; divides model.image_size. An image has "
        "(image_size / patch)^2 tokens."},
    c.model.patch);
  f(Key{"model.width", within(2, 65536),
        "D, values of a token; even, and a multiple of model.heads."},
    c.model.width);
  f(Key{"model.depth", within(1, 1000), "R, transformer blocks."}, c.model.depth);
  f(Key{"model.heads", within(1, 4096), "A, attention heads."}, c.model.heads);
  f(Key{"model.spiking_steps", within(1, 1024), "T, spiking steps of a call of the denoiser."},
    c.model.spiking_steps);
  f(Key{"model.hidden_ratio", within(1, 64),
        "Width of a candidate's hidden layer over model.width."},
    c.model.hidden_ratio);
  f(Key{"model.candidates", within(1, 1024), "N, candidate substructures of a layer that selects."},
    c.model.candidates);
  f(Key{"model.selected", within(1, 1024),
        "k, candidates that are selected for each sample and spiking step; at most "
        "model.candidates."},
    c.model.selected);
  f(Key{"model.selection", one_of({"full", "head", "middle", "tail", "none"}),
        "The blocks that select: all, the first, middle or last third, or none."},
    c.model.selection);
  f(Key{"model.lateral", anything(),
        "Whether the selection network has lateral connections (eqs 10-12)."},
    c.model.lateral);
  f(Key{"model.gamma_start", within(-kInfinity, kInfinity),
        "Start value of gamma, the strength of the lateral correction."},
    c.model.gamma_start);
  f(Key{"model.aggregation_start", one_of(model::aggregation_starts()),
        "Start value of Lambda, the weights of the lateral connections: 1 - I, I - 1, 100 (1 - "
        "I), 100 (I - 1), or random zeros and ones."},
    c.model.aggregation_start);
  f(Key{"model.surrogate", one_of(model::surrogate_names()),
        "Derivative of a spike in the backward pass (spec section 1)."},
    c.model.surrogate);
  f(Key{"diffusion.steps", within(1, 100000), "Diffusion steps of the noise schedule."},
    c.diffusion.steps);
  f(Key{"diffusion.beta_first", above(0, 0.999),
        "Variance of the noise that the first diffusion step adds."},
    c.diffusion.beta_first);
  f(Key{"diffusion.beta_last", above(0, 0.999),
        "Variance of the noise that the last diffusion step adds; beta is linear in between."},
    c.diffusion.beta_last);
  f(Key{"training.batch", within(1, kMostSamples), "Samples of a training step over all ranks."},
    c.training.batch);
  f(Key{"training.micro_batch", within(0, kMostSamples).or_other_later(),
        "Samples that a rank computes at once; gradients accumulate. 0: chosen to fit memory "
        "when the run first starts, and kept."},
    c.training.micro_batch);
  f(Key{"training.steps", within(1, kMostSteps).or_other_later(),
        "Training steps in all, including those before a resume."},
    c.training.steps);
  f(Key{"training.learning_rate", above(0), "AdamW's learning rate."}, c.training.learning_rate);
  f(Key{"training.warmup", within(0, kMostSteps),
        "Steps at the start in which the rate rises linearly to training.learning_rate."},
    c.training.warmup);
  f(Key{"training.decay", within(0, 1),
        "Share of training.steps, at the end, in which the rate falls linearly to 0."},
    c.training.decay);
  f(Key{"training.clip_norm", above(0),
        "Largest norm of the gradient over all parameters; longer gradients are scaled down to "
        "it."},
    c.training.clip_norm);
  f(Key{"training.ema", within(0, 1),
        "Decay of the weights' running average, which sampling uses; smaller during the first "
        "steps (spec section 1)."},
    c.training.ema);
  f(Key{"training.seed", at_least(0),
        "Seed of the start values, the order of the data, diffusion steps and noise."},
    c.training.seed);
  f(Key{"training.weighting", one_of({"uniform", "min_snr"}),
        "Weight of a sample's squared error in the gradient: 1, or min(SNR, 5) / SNR of its "
        "diffusion step (Hang et al. 2023, arXiv 2303.09556). The logged loss is the plain "
        "mean with both."},
    c.training.weighting);
  f(Key{"training.precision", one_of({"float32", "bfloat16", "float64"}),
        "Arithmetic of the model. bfloat16: only the operands of products that read spikes."},
    c.training.precision);
  f(Key{"parallel.expert", within(1, 1024).or_other_later(),
        "EP, ranks of an expert-parallel group, which share the candidates; divides the number "
        "of ranks."},
    c.parallel.expert);
  f(Key{"parallel.threads", within(0, 1024).or_other_later(),
        "Threads that a rank computes with. 0: OMP_NUM_THREADS, or else the cores that the ranks "
        "of a host may use, divided among them."},
    c.parallel.threads);
  f(Key{"data.path", anything().or_other_later(),
        "Folder of the data set (`laterna data make` or `import` makes it). The only key "
        "without a default."},
    c.data.path);
  f(Key{"data.flip", anything(), "Whether images are mirrored left to right at random."},
    c.data.flip);
  f(Key{"checkpoint.every", within(0, kMostSteps).or_other_later(),
        "Training steps between checkpoints. 0: only by checkpoint.minutes, before evaluations, "
        "on a stop and at the end."},
    c.checkpoint.every);
  f(Key{"checkpoint.minutes", at_least(0).or_other_later(),
        "Minutes between checkpoints. 0: only by checkpoint.every."},
    c.checkpoint.minutes);
  f(Key{"checkpoint.keep", within(1, 1e6).or_other_later(),
        "Checkpoints to keep, the newest; the one with the best FID is kept besides."},
    c.checkpoint.keep);
  f(Key{"sampling.sampler", one_of(model::sampler_names()).or_other_later(),
        "How images are sampled."},
    c.sampling.sampler);
  f(Key{"sampling.steps", within(1, 100000).or_other_later(),
        "Diffusion steps that the sampler takes; at most diffusion.steps."},
    c.sampling.steps);
  f(Key{"sampling.count", within(1, kMostSamples).or_other_later(), "Images to sample."},
    c.sampling.count);
  f(Key{"sampling.seed", at_least(0).or_other_later(), "Seed of the samples' noise."},
    c.sampling.seed);
  f(Key{"sampling.chunk", within(1, 65536).or_other_later(),
        "Images that a rank samples at once. Their pixels depend on it (spec section 5)."},
    c.sampling.chunk);
  f(Key{"evaluation.every", within(0, kMostSteps).or_other_later(),
        "Training steps between evaluations. 0: none."},
    c.evaluation.every);
  f(Key{"evaluation.samples", within(1, kMostSamples).or_other_later(),
        "Images to sample for an evaluation."},
    c.evaluation.samples);
  f(Key{"evaluation.reference", anything().or_other_later(),
        "What samples are compared with: a data set's folder, or statistics (.npz). Empty: "
        "data.path."},
    c.evaluation.reference);
  f(Key{"evaluation.extractor", anything().or_other_later(),
        "Network whose features are compared: a TorchScript file, an .h5 file of `laterna "
        "features train`, or builtin: features.h5 in the reference."},
    c.evaluation.extractor);
  f(Key{"metrics.port", within(0, 65535).or_other_later(),
        "TCP port at which rank 0 serves Prometheus metrics. 0: none."},
    c.metrics.port);
  f(Key{"metrics.address", anything().or_other_later(),
        "Address on which they are served; 0.0.0.0 for other hosts to reach it."},
    c.metrics.address);
  f(Key{"watchdog.seconds", above(0).or_other_later(),
        "Time without progress on any rank after which the run is ended as hung."},
    c.watchdog.seconds);
}

/// Returns a value as TOML; numbers in the shortest form that reads back to the same bits.
std::string to_text(std::int64_t value);
std::string to_text(double value);
std::string to_text(bool value);
std::string to_text(const std::string& value);

/// Returns the range of a number, such as "at least 1 and at most 4096".
std::string range_text(const Allowed& allowed);

}  // namespace laterna::launch
