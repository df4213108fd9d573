// `laterna bench train | denoise`: the speed of a model in one process, and the share of each kind
// of work in it. Weights and images are random, or with --model those of a trained model and its
// data set, since the speed of spiking arithmetic depends on how many neurons fire.
#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <fmt/format.h>
#include <sys/resource.h>

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>

#include "data/host.h"
#include "data/image_set.h"
#include "launch/bench/bench.h"
#include "launch/bench/part_times.h"
#include "launch/checkpoint/tensor_file.h"
#include "launch/collective.h"
#include "launch/pixels.h"
#include "launch/training/observations.h"
#include "launch/training/trainer.h"
#include "model/denoiser.h"
#include "model/diffusion.h"
#include "model/initialise.h"
#include "model/kernels/cpu/kernels.h"
#include "model/optimizer.h"

namespace laterna::launch {
namespace {

constexpr double kPartsShare = 0.3;  // of the measuring time, added for the times of the parts

/// A model and the images that it is run on, x0 [B, C, H, W].
struct Subject {
  LoadedModel model;
  at::Tensor x0;

  const Config& config() const { return model.config; }
  at::Device device() const { return x0.device(); }
};

Subject fresh_subject(const Config& config, bool trainable, at::Device device) {
  const auto& m = config.model;
  model::Parameters parameters(model::parameter_specs(m), at::kFloat, trainable, device);
  model::initialise(parameters, m, 0);
  const at::Tensor x0 =
      at::rand({config.training.batch, m.channels, m.image_size, m.image_size}, device) * 2 - 1;
  return {{config, std::move(parameters)}, x0};
}

Subject trained_subject(const std::string& path, const Settings& settings, bool trainable,
                        at::Device device) {
  for (const auto& setting : settings) {
    if (setting.rfind("model.", 0) == 0) {
      throw UsageError(
          fmt::format("--set {}: the weights in {} fix the model; leave this out", setting, path));
    }
  }
  LoadedModel loaded = read_model(path, at::kFloat, trainable, device);
  loaded.config.training.micro_batch = 0;  // the stored one was chosen for the run's ranks
  loaded.config = parse_config(to_toml(loaded.config), path, settings);
  const auto images = open_images(loaded.config);
  std::vector<std::int64_t> indices;
  for (std::int64_t i = 0; i < loaded.config.training.batch; ++i) {
    indices.push_back(i % images.count());
  }
  const at::Tensor pixels = pixels_of(images, indices);
  return {std::move(loaded), model::to_signal(pixels.to(device), at::kFloat)};
}

/// Runs one whole training step per call.
class Training {
 public:
  Training(const Subject& subject, const dist::World& world)
      : subject_(subject),
        micro_(choose_micro_batch(subject.config(), world)),
        denoiser_(subject.config().model, subject.model.parameters, subject.config().precision()),
        diffusion_(subject.config().diffusion),
        optimizer_(subject.model.parameters, subject.config().training.ema) {}

  void operator()() {
    const auto& training = subject_.config().training;
    const at::Tensor& gradient = subject_.model.parameters.gradient();
    gradient.zero_();
    const auto shape = subject_.x0.sizes().slice(1).vec();
    const auto draws = diffusion_.draw(0, step_++, 0, training.batch, shape, at::kFloat);
    for (std::int64_t begin = 0; begin < training.batch; begin += micro_) {
      const std::int64_t end = std::min(begin + micro_, training.batch);
      const model::Draws mine{draws.t.slice(0, begin, end), draws.noise.slice(0, begin, end)};
      const at::Tensor x = diffusion_.corrupt(subject_.x0.slice(0, begin, end), mine);
      const at::Tensor epsilon = denoiser_.forward(x, mine.t, denoiser_.route(mine.t));
      diffusion_.loss(epsilon, mine, draws.noise.numel(), training.weighs_by_snr())
          .minimised.backward();
    }
    const double norm = std::sqrt(model::sum_of_squares(gradient));
    optimizer_.step(training.learning_rate, std::min(1.0, training.clip_norm / (norm + 1e-6)));
    finish(subject_.model.parameters.values());
  }

 private:
  const Subject& subject_;
  std::int64_t micro_;
  model::Denoiser denoiser_;
  model::Diffusion diffusion_;
  model::Optimizer optimizer_;
  std::uint64_t step_ = 0;
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

/// Returns the seconds of one run by part (model/probes/part.h); "the rest" is time outside all
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
  times["the rest"] = (total - named) / runs;
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

}  // namespace

int bench_model(const ModelBenchmark& benchmark, const dist::World& world) {
  const at::Device device = world.device().torch();
  const bool trains = benchmark.trains;
  const Subject subject =
      benchmark.weights.empty()
          ? fresh_subject(read_config(benchmark.config, benchmark.settings), trains, device)
          : trained_subject(benchmark.weights, benchmark.settings, trains, device);
  const auto rates = firing_rates(subject);  // before training changes the weights
  const auto work = trains ? std::function<void()>(Training(subject, world)) : Denoising(subject);
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

double training_speed(Config config, const dist::World& world) {
  config.training.batch = std::min<std::int64_t>(config.training.batch, 8);
  const Subject subject = fresh_subject(config, true, world.device().torch());
  return double(config.training.batch) / median(time_runs(2, Training(subject, world)));
}

}  // namespace laterna::launch
