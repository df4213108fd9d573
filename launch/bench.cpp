// `laterna bench`: train and denoise, the speed of a configuration's model on random images in one
// process (tests/reference/compare_speed.py runs them and a PyTorch model in turn); kernels, what
// their parts make of the machine (bench_kernels.cpp); exchange and scaling, on ranks
// (bench_exchange.cpp, bench_scaling.cpp); fid, the figures of image quality (bench_fid.cpp). The
// last line of the output is one JSON object.
#include "launch/bench.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <fmt/format.h>
#include <sys/resource.h>

#include <algorithm>
#include <chrono>
#include <functional>
#include <memory>
#include <nlohmann/json.hpp>

#include "data/host.h"
#include "launch/config.h"
#include "launch/together.h"
#include "launch/trainer.h"
#include "launch/verbs.h"
#include "model/denoiser.h"
#include "model/diffusion.h"
#include "model/kernels/kernels.h"
#include "model/optimizer.h"

namespace laterna::launch {
namespace {

using Clock = std::chrono::steady_clock;

constexpr int kWarmup = 3;  // uncounted runs: allocators and thread pools settle

struct Request {
  std::string name, config;
  Settings settings;
  std::int64_t batch = 0;
  int threads = 0;
  double seconds = 10;
  std::int64_t samples = 10000, features = 2048;  // of fid
  std::string output;
};

/// Waits until a GPU has computed `result`; one number of it comes to the host.
void finish(const at::Tensor& result) {
  if (!result.is_cpu()) result.flatten()[0].item();
}

/// The machine's float32 matrix-product rate in this process, in GFLOP/s.
double dense_rate(at::Device device) {
  const std::int64_t size = device.is_cuda() ? 8192 : 1536;
  const at::Tensor a = at::rand({size, size}, device), b = at::rand({size, size}, device);
  at::Tensor c = at::empty_like(a);
  const double seconds = median(time_runs(1.0, [&] {
    at::mm_out(c, a, b);
    finish(c);
  }));
  return 2.0 * double(size * size * size) / seconds / 1e9;
}

std::vector<double> bench_train(const Config& config, const dist::World& world, double seconds) {
  const auto& m = config.model;
  const at::Device device = world.device().torch();
  model::Parameters parameters(model::parameter_specs(m), at::kFloat, true, device);
  model::initialise(parameters, m, 0);
  const model::Denoiser denoiser(m, parameters, config.precision());
  const model::Diffusion diffusion(config.diffusion);
  model::Optimizer optimizer(parameters, config.training.ema);
  const std::int64_t batch = config.training.batch, micro = choose_micro_batch(config, world);
  const std::vector<std::int64_t> shape{m.channels, m.image_size, m.image_size};
  const at::Tensor x0 = at::rand({batch, shape[0], shape[1], shape[2]}, device) * 2 - 1;
  std::uint64_t step = 0;
  return time_runs(seconds, [&] {
    parameters.gradient().zero_();
    const auto draws = diffusion.draw(0, step++, 0, batch, shape, at::kFloat);
    for (std::int64_t begin = 0; begin < batch; begin += micro) {
      const std::int64_t end = std::min(begin + micro, batch);
      const model::Draws mine{draws.t.slice(0, begin, end), draws.noise.slice(0, begin, end)};
      const at::Tensor x = diffusion.corrupt(x0.slice(0, begin, end), mine);
      const at::Tensor epsilon = denoiser.forward(x, mine.t, denoiser.route(mine.t));
      const at::Tensor loss =
          (mine.noise.to(device) - epsilon).square().sum() / double(draws.noise.numel());
      loss.backward();
    }
    const double norm = std::sqrt(model::sum_of_squares(parameters.gradient()));
    optimizer.step(config.training.learning_rate,
                   std::min(1.0, config.training.clip_norm / (norm + 1e-6)));
    finish(parameters.values());
  });
}

std::vector<double> bench_denoise(const Config& config, at::Device device, double seconds) {
  const at::NoGradGuard no_grad;
  const auto& m = config.model;
  model::Parameters parameters(model::parameter_specs(m), at::kFloat, false, device);
  model::initialise(parameters, m, 0);
  const model::Denoiser denoiser(m, parameters, config.precision());
  const std::int64_t batch = config.training.batch;
  const at::Tensor x = at::randn({batch, m.channels, m.image_size, m.image_size}, device);
  std::int64_t call = 0;
  return time_runs(seconds, [&] {  // as in sampling, the batch shares t_d
    const at::Tensor t = at::full({batch}, 7919 * call++ % config.diffusion.steps, at::kLong);
    finish(denoiser.forward(x, t, denoiser.route(t)));
  });
}

int bench(const Request& request, dist::World& world) {
  world.open_device();
  const bool on_ranks =
      request.name == "exchange" || request.name == "scaling" || request.name == "checkpoint";
  if (!on_ranks) alone(world, "bench " + request.name);
  if (request.threads > 0) at::set_num_threads(request.threads);
  if (request.name == "fid") return bench_fid(request.samples, request.features, request.output);
  if (request.config.empty()) {
    throw UsageError("bench " + request.name + ": --config is missing: a TOML file, such as " +
                     "launch/presets/mnist.toml");
  }
  Settings settings = request.settings;
  if (request.batch > 0) settings.push_back(fmt::format("training.batch={}", request.batch));
  Config config;
  together(world, [&] { config = read_config(request.config, settings); });
  if (request.name == "kernels") return bench_kernels(config, request.seconds);
  if (request.name == "exchange") return bench_exchange(config, world, request.seconds);
  if (request.name == "scaling") return bench_scaling(config, world, request.seconds);
  if (request.name == "checkpoint") {
    if (request.output.empty())
      throw UsageError("bench checkpoint: --output is missing: a folder on the disk to measure");
    return bench_checkpoint(config, world, request.seconds, request.output);
  }
  const bool training = request.name == "train";
  const auto runs = training ? bench_train(config, world, request.seconds)
                             : bench_denoise(config, world.device().torch(), request.seconds);
  rusage usage{};
  getrusage(RUSAGE_SELF, &usage);
  const nlohmann::json line = {
      {"benchmark", request.name},
      {"program", "laterna"},
      {"config", request.config},
      {"batch", config.training.batch},
      {"micro_batch", training ? choose_micro_batch(config, world) : config.training.batch},
      {"threads", at::get_num_threads()},
      {"device", world.device().description()},
      {"kernels", kernels::kernels<float>().instruction_set},
      {"samples_per_second", double(config.training.batch) / median(runs)},
      {"step_seconds", runs},
      {"dense_gflops", dense_rate(world.device().torch())},
      {"peak_memory_bytes", std::int64_t{usage.ru_maxrss} * 1024}};
  fmt::print("{}\n", line.dump());
  return 0;
}

}  // namespace

std::vector<double> time_runs(double budget, const std::function<void()>& work) {
  for (int i = 0; i < kWarmup; ++i) work();
  std::vector<double> runs;
  double total = 0;
  while (total < budget || runs.size() < 5) {
    const auto began = Clock::now();
    work();
    runs.push_back(data::seconds_since(began));
    total += runs.back();
  }
  return runs;
}

double training_speed(Config config, const dist::World& world) {
  config.training.batch = std::min<std::int64_t>(config.training.batch, 8);
  return double(config.training.batch) / median(bench_train(config, world, 2));
}

double median(std::vector<double> values) {
  std::nth_element(values.begin(), values.begin() + values.size() / 2, values.end());
  return values[values.size() / 2];
}

void add_bench(CLI::App& app, Action& action) {
  const auto request = std::make_shared<Request>();
  auto* verb = app.add_subcommand("bench", "Named benchmarks; the last line is JSON");
  verb->add_option("name", request->name,
                   "train, denoise, kernels or fid; under mpirun exchange, scaling or checkpoint")
      ->required()
      ->check(CLI::IsMember(
          {"train", "denoise", "kernels", "exchange", "scaling", "checkpoint", "fid"}));
  verb->add_option("--config", request->config,
                   "A TOML file, such as launch/presets/mnist.toml (all but fid)");
  verb->add_option("--set", request->settings, "table.key=value; repeatable")
      ->take_all()
      ->allow_extra_args(false);
  verb->add_option("--batch", request->batch, "Samples at once (training.batch)")
      ->check(CLI::PositiveNumber);
  verb->add_option("--threads", request->threads, "Threads (those of OMP_NUM_THREADS)")
      ->check(CLI::PositiveNumber);
  verb->add_option("--seconds", request->seconds, "How long to measure")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  verb->add_option("--samples", request->samples, "fid: of each side")
      ->check(CLI::Range(20, 10'000'000))
      ->capture_default_str();
  verb->add_option("--features", request->features, "fid: their dimension")
      ->check(CLI::Range(1, 65536))
      ->capture_default_str();
  verb->add_option(
      "--output", request->output,
      "checkpoint: a folder on the disk to measure; fid: a folder for the features, as .npz");
  verb->callback([&action, request] {
    action = [request](dist::World& world) { return bench(*request, world); };
  });
}

}  // namespace laterna::launch
