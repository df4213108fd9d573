// The configuration of a run: one TOML file, with every key settable on the command line, resolved,
// checked and printed. The table of keys in config_keys.h drives reading, printing, comparing and
// the error messages (spec section 3).
#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

#include "dist/experts/placement.h"
#include "model/diffusion.h"
#include "model/model_config.h"
#include "model/sampler.h"

namespace laterna::launch {

/// Bad usage or configuration; exit status 2. The message names the key or flag and what is
/// allowed.
struct UsageError : std::runtime_error {
  using std::runtime_error::runtime_error;
};

struct TrainingConfig {
  std::int64_t batch = 128;      // global: samples per step over all ranks
  std::int64_t micro_batch = 0;  // samples a rank computes at once; 0: chosen to fit memory
  std::int64_t steps = 800000;   // total of the run, also after resuming
  double learning_rate = 1e-4;
  std::int64_t warmup = 0;  // steps in which the rate rises linearly to learning_rate
  double decay = 0;         // share of the steps, at the end, in which the rate falls linearly to 0
  double clip_norm = 1;
  double ema = 0.9999;
  std::int64_t seed = 0;
  std::string weighting = "uniform";  // of samples in the gradient: uniform | min_snr
  std::string precision = "float32";  // float32 | bfloat16 | float64

  bool weighs_by_snr() const { return weighting == "min_snr"; }
  /// Returns the learning rate of step `step`, counted from 0.
  double rate_at(std::int64_t step) const;
};

struct Config {
  model::ModelConfig model;
  model::DiffusionConfig diffusion;
  TrainingConfig training;
  struct {
    std::int64_t expert = 1;
    std::int64_t threads = 0;  // of a rank; 0: chosen (launch/threads.h)
  } parallel;
  struct {
    std::string path;
    bool flip = false;
  } data;
  struct {
    std::int64_t every = 1000;
    double minutes = 0;
    std::int64_t keep = 3;
  } checkpoint;
  struct {
    std::string sampler = "ddpm";
    std::int64_t steps = 1000, count = 64, seed = 0, chunk = 64;
  } sampling;
  struct {
    std::int64_t every = 0, samples = 5000;
    std::string reference, extractor = "builtin";
  } evaluation;
  struct {
    std::int64_t port = 9464;
    std::string address = "127.0.0.1";
  } metrics;
  struct {
    double seconds = 300;
  } watchdog;

  model::Precision precision() const;
  dist::Placement placement() const;  // of candidates in an expert-parallel group
  model::SamplerOptions sampler() const;
};

/// Values of --set, each "table.key=value". The value is read as TOML; anything but a number, a
/// boolean, an array or a quoted string is taken as an unquoted string.
using Settings = std::vector<std::string>;

/// Reads a TOML file, then applies the settings, then checks everything. Throws UsageError when the
/// file cannot be read and for an unknown key, a wrong type or an invalid value.
Config read_config(const std::filesystem::path& path, const Settings& settings);
/// Does the same for TOML text; `origin` names the text in error messages.
Config parse_config(const std::string& toml, const std::string& origin, const Settings& settings);

/// Returns every key with its value, as TOML from which read_config restores the same
/// configuration.
std::string to_toml(const Config& config);

/// A key whose values differ between two configurations.
struct Difference {
  std::string key, left, right;
};

/// Returns the keys in which the stored configuration of a run differs from the wanted one although
/// a run may not resume with another value of them (spec section 3).
std::vector<Difference> forbidden_differences(const Config& stored, const Config& wanted);

}  // namespace laterna::launch
