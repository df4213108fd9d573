// `laterna bench train | denoise`: the speed of a model in one process, and the share of each kind
// of work in it. Weights and images are random, or with --model those of a trained model and its
// data set, since the speed of spiking arithmetic depends on how many neurons fire.
#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <fmt/format.h>
#include <sys/resource.h>

#include <algorithm>
#include <functional>
#include <memory>
#include <nlohmann/json.hpp>

#include "data/host.h"
#include "data/image_set.h"
#include "launch/bench/bench.h"
#include "launch/bench/part_times.h"
#include "launch/bench/random_images.h"
#include "launch/checkpoint/tensor_file.h"
#include "launch/collective.h"
#include "launch/pixels.h"
#include "launch/training/observations.h"
#include "launch/training/trainer.h"
#include "model/denoiser.h"
#include "model/diffusion.h"
#include "model/initialise.h"
#include "model/kernels/cpu/kernels.h"

namespace laterna::launch {
namespace {

constexpr double kPartsShare = 0.3;  // of the measuring time, added for the times of the parts

/// A model and the images that it is run on.
struct Subject {
  LoadedModel model;
  std::unique_ptr<RandomImages> random;  // null where `real` is set
  std::unique_ptr<data::ImageSet> real;
  at::Tensor x0;  // [B, C, H, W]: a batch of the images

  const Config& config() const { return model.config; }
  const data::ImageSet& images() const { return real ? *real : random->set(); }
};

/// Sets the batch of `subject` to its first images, repeated where it has too few.
void set_batch(Subject& subject, at::Device device) {
  std::vector<std::int64_t> indices;
  for (std::int64_t i = 0; i < subject.config().training.batch; ++i) {
    indices.push_back(i % subject.images().count());
  }
  subject.x0 = model::to_signal(pixels_of(subject.images(), indices).to(device), at::kFloat);
}

Subject fresh_subject(const Config& config, at::Device device) {
  model::Parameters parameters(model::parameter_specs(config.model), at::kFloat, false, device);
  model::initialise(parameters, config.model, config.training.seed);
  Subject subject{{config, std::move(parameters)}, std::make_unique<RandomImages>(config), {}, {}};
  set_batch(subject, device);
  return subject;
}

Subject trained_subject(const std::string& path, const Settings& settings, at::Device device) {
  for (const auto& setting : settings) {
    if (setting.rfind("model.", 0) == 0) {
      throw UsageError(
          fmt::format("--set {}: the weights in {} fix the model; leave this out", setting, path));
    }
  }
  LoadedModel loaded = read_model(path, at::kFloat, false, device);
  loaded.config.training.micro_batch = 0;  // the stored one was chosen for the run's ranks
  loaded.config = parse_config(to_toml(loaded.config), path, settings);
  auto images = std::make_unique<data::ImageSet>(open_images(loaded.config));
  Subject subject{std::move(loaded), {}, std::move(images), {}};
  set_batch(subject, device);
  return subject;
}

/// Runs one training step per call, the first from the subject's weights.
class Training {
 public:
  Training(const Subject& subject, dist::World& world)
      : trainer_(alone(subject.config(), world), subject.images(), world),
        stop_(subject.images().folder(), 0, world.control()) {
    const at::NoGradGuard no_grad;
    trainer_.parameters().values().copy_(subject.model.parameters.values());
    trainer_.start(0);
  }
  void operator()() { trainer_.train_step(stop_); }

 private:
  /// Forms the groups of a single process and returns its configuration.
  static Config alone(Config config, dist::World& world) {
    config.parallel.expert = 1;
    form_groups(world, config);
    return config;
  }

  Trainer trainer_;
  StopRequest stop_;
};

/// Runs the denoiser once per call, on a batch that shares t_d, as in sampling.
class Denoising {
 public:
  explicit Denoising(const Subject& subject)
      : subject_(subject),
        denoiser_(subject.config().model, subject.model.parameters, subject.config().precision()),
        diffusion_(subject.config().diffusion),
        noise_(at::randn_like(subject.x0)) {}

  void operator()() {
    const at::NoGradGuard no_grad;
    const at::Tensor t =
        at::full({subject_.x0.size(0)}, 7919 * call_++ % diffusion_.steps(), at::kLong);
    const at::Tensor x = diffusion_.corrupt(subject_.x0, {t, noise_});
    finish(denoiser_.forward(x, t, denoiser_.route(t)));
  }

 private:
  const Subject& subject_;
  model::Denoiser denoiser_;
  model::Diffusion diffusion_;
  at::Tensor noise_;
  std::int64_t call_ = 0;
};

/// Returns the share of neurons that fire at each site, over all layers, for a few images.
std::map<std::string, double> firing_rates(const Subject& subject) {
  constexpr std::int64_t kMost = 16;
  const auto activity =
      watch_spikes(subject.config(), subject.model.parameters, subject.x0.slice(0, 0, kMost));
  std::map<std::string, model::SpikeActivity::Rate> sums;
  for (const auto& layer : activity.layers()) {
    for (const auto& [site, rate] : layer.rates) {
      sums[site].fired += rate.fired;
      sums[site].neurons += rate.neurons;
    }
  }
  std::map<std::string, double> rates;
  for (const auto& [site, sum] : sums) rates[site] = sum.value();
  return rates;
}

/// Returns the seconds of one run by part (model/probes/part.h); "rest" is the time outside all
/// parts.
template <typename Work>
std::map<std::string, double> seconds_by_part(const Work& work, double seconds) {
  const PartTimes parts;
  double total = 0;
  int runs = 0;
  while (runs == 0 || total < seconds) {
    const auto began = std::chrono::steady_clock::now();
    work();
    total += data::seconds_since(began);
    ++runs;
  }
  std::map<std::string, double> times = parts.seconds();
  double named = 0;
  for (auto& [name, time] : times) named += time, time /= runs;
  times["rest"] = (total - named) / runs;
  return times;
}

void print_parts(const std::map<std::string, double>& parts) {
  std::vector<std::pair<double, std::string>> order;
  double total = 0;
  for (const auto& [name, seconds] : parts) order.emplace_back(seconds, name), total += seconds;
  std::sort(order.rbegin(), order.rend());
  for (const auto& [seconds, name] : order) {
    fmt::print("{:<30}{:>10.2f} ms{:>7.1f}%\n", name, 1e3 * seconds, 100 * seconds / total);
  }
}

/// Returns a function that runs one training step, or one call of the denoiser.
std::function<void()> work_on(const Subject& subject, bool trains, dist::World& world) {
  if (!trains) return Denoising(subject);
  return [training = std::make_shared<Training>(subject, world)] { (*training)(); };
}

}  // namespace

int bench_model(const ModelBenchmark& benchmark, dist::World& world) {
  const at::Device device = world.device().torch();
  const bool trains = benchmark.trains;
  const Subject subject =
      benchmark.weights.empty()
          ? fresh_subject(read_config(benchmark.config, benchmark.settings), device)
          : trained_subject(benchmark.weights, benchmark.settings, device);
  const auto rates = firing_rates(subject);
  const auto work = work_on(subject, trains, world);
  const auto runs = time_runs(benchmark.seconds, work);
  rusage usage{};
  getrusage(RUSAGE_SELF, &usage);
  nlohmann::json line = {
      {"benchmark", trains ? "train" : "denoise"},
      {"program", "laterna"},
      {"config", benchmark.weights.empty() ? benchmark.config : benchmark.weights},
      {"batch", subject.x0.size(0)},
      {"micro_batch", trains ? choose_micro_batch(subject.config(), world) : subject.x0.size(0)},
      {"threads", at::get_num_threads()},
      {"device", world.device().description()},
      {"kernels", kernels::kernels<float>().instruction_set},
      {"samples_per_second", double(subject.x0.size(0)) / median(runs)},
      {"step_seconds", runs},
      {"peak_memory_bytes", std::int64_t{usage.ru_maxrss} * 1024},
      {"firing_rates", rates}};
  if (device.is_cpu()) {  // on a GPU the work outlasts the part that launched it
    const auto parts = seconds_by_part(work, kPartsShare * benchmark.seconds);
    print_parts(parts);
    line["part_seconds"] = parts;
  }
  line["dense_gflops"] = 1e-9 * dense_rate(device, 1);
  fmt::print("{}\n", line.dump());
  return 0;
}

double training_speed(Config config, dist::World& world) {
  config.training.batch = std::min<std::int64_t>(config.training.batch, 8);
  const Subject subject = fresh_subject(config, world.device().torch());
  return double(config.training.batch) / median(time_runs(2, work_on(subject, true, world)));
}

}  // namespace laterna::launch
