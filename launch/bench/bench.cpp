// `laterna bench NAME`, each in a file of this folder. In one process: train and denoise, the
// speed of a model (model.cpp; tests/reference/compare_speed.py alternates them with a
// PyTorch model); kernels, their speed against the limits of the machine; fid, the cost of the
// image quality figures. On MPI ranks: exchange, scaling and checkpoint. The last line of the
// output is one JSON object.
#include "launch/bench/bench.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <functional>
#include <memory>

#include "data/host.h"
#include "launch/collective.h"
#include "launch/config.h"
#include "launch/verbs/verbs.h"
#include "model/spiking/dense_product.h"

namespace laterna::launch {
namespace {

using Clock = std::chrono::steady_clock;

constexpr int kWarmup = 3;  // runs that are not timed, until allocators and thread pools settle

struct Request {
  std::string name, config, weights;
  Settings settings;
  std::int64_t batch = 0;
  int threads = 0;
  double seconds = 10;
  std::int64_t samples = 10000, features = 2048;  // for fid
  std::string output;
};

int bench(const Request& request, dist::World& world) {
  world.open_device();
  at::manual_seed(0);  // LibTorch's default seed differs from start to start
  const bool of_model = request.name == "train" || request.name == "denoise";
  const bool on_ranks =
      request.name == "exchange" || request.name == "scaling" || request.name == "checkpoint";
  if (!on_ranks) require_single_process(world, "bench " + request.name);
  if (request.threads > 0) at::set_num_threads(request.threads);
  if (request.name == "fid") return bench_fid(request.samples, request.features, request.output);
  if (!of_model && !request.weights.empty()) {
    throw UsageError("bench " + request.name + ": --model applies only to train and denoise");
  }
  if (request.config.empty() && request.weights.empty()) {
    throw UsageError("bench " + request.name + ": --config is missing; give a TOML file, such as " +
                     "launch/presets/mnist.toml");
  }
  Settings settings = request.settings;
  if (request.batch > 0) settings.push_back(fmt::format("training.batch={}", request.batch));
  if (of_model) {
    return bench_model(
        {request.name == "train", request.config, request.weights, settings, request.seconds},
        world);
  }
  Config config;
  run_collectively(world, [&] { config = read_config(request.config, settings); });
  if (request.name == "kernels") return bench_kernels(config, request.seconds);
  if (request.name == "exchange") return bench_exchange(config, world, request.seconds);
  if (request.name == "scaling") return bench_scaling(config, world, request.seconds);
  if (request.output.empty())
    throw UsageError("bench checkpoint: --output is missing; give a folder on the disk to measure");
  return bench_checkpoint(config, world, request.seconds, request.output);
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

void finish(const at::Tensor& result) {
  if (!result.is_cpu()) result.flatten()[0].item();
}

double dense_rate(at::Device device, double seconds) {
  const std::int64_t size = device.is_cuda() ? 8192 : 1536;
  const at::Tensor a = at::rand({size, size}, device), b = at::rand({size, size}, device);
  at::Tensor c = at::empty_like(a);
  const double own = median(time_runs(seconds / 2, [&] {
    at::mm_out(c, a, b);
    finish(c);
  }));
  const double other = median(time_runs(seconds / 2, [&] { finish(model::dense_product(a, b)); }));
  return 2.0 * double(size * size * size) / std::min(own, other);
}

double median(std::vector<double> values) {
  std::nth_element(values.begin(), values.begin() + values.size() / 2, values.end());
  return values[values.size() / 2];
}

void add_bench(CLI::App& app, Action& action) {
  const auto request = std::make_shared<Request>();
  auto* verb = app.add_subcommand("bench", "Run a benchmark; the last line of the output is JSON");
  verb->add_option("name", request->name,
                   "train, denoise, kernels or fid; under mpirun: exchange, scaling or checkpoint")
      ->required()
      ->check(CLI::IsMember(
          {"train", "denoise", "kernels", "exchange", "scaling", "checkpoint", "fid"}));
  auto* config = verb->add_option("--config", request->config,
                                  "A TOML file, such as launch/presets/mnist.toml (all but fid)");
  verb->add_option("--model", request->weights,
                   "train, denoise: a file written by laterna export, to measure this model on "
                   "images of its data.path instead of random weights and images")
      ->excludes(config);
  verb->add_option("--set", request->settings, "Override a key: table.key=value; repeatable")
      ->take_all()
      ->allow_extra_args(false);
  verb->add_option("--batch", request->batch, "Samples per step or call (overrides training.batch)")
      ->check(CLI::PositiveNumber);
  verb->add_option("--threads", request->threads, "CPU threads (default: OMP_NUM_THREADS)")
      ->check(CLI::PositiveNumber);
  verb->add_option("--seconds", request->seconds, "Seconds to measure")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  verb->add_option("--samples", request->samples,
                   "fid: number of generated and of reference samples")
      ->check(CLI::Range(20, 10'000'000))
      ->capture_default_str();
  verb->add_option("--features", request->features, "fid: dimension of the features")
      ->check(CLI::Range(1, 65536))
      ->capture_default_str();
  verb->add_option(
      "--output", request->output,
      "checkpoint: a folder on the disk to measure; fid: a folder for the features, as .npz");
  verb->callback([&action, request] {
    action.run = [request](dist::World& world) { return bench(*request, world); };
  });
}

}  // namespace laterna::launch
