// `laterna inspect`: shows a run in one screen, what a checkpoint's routers choose at every
// diffusion step (a function of the routers' few parameters only), on request the parameters and
// the cost of the spikes; with --plan it estimates which EP x DP layout of a cluster is fastest.
#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <memory>

#include "data/error.h"
#include "data/image_set.h"
#include "dist/experts/placement.h"
#include "launch/bench/bench.h"
#include "launch/checkpoint/checkpoint.h"
#include "launch/collective.h"
#include "launch/inspection/cost_model.h"
#include "launch/inspection/run_summary.h"
#include "launch/pixels.h"
#include "launch/training/observations.h"
#include "launch/training/run_folder.h"
#include "launch/training/trainer.h"
#include "launch/verbs/verbs.h"
#include "model/denoiser.h"
#include "model/probes/spike_activity.h"

namespace laterna::launch {
namespace {

namespace fs = std::filesystem;

constexpr std::int64_t kColumns = 20;  // intervals of t_d in the plot of the selection

/// Prints which candidates each rank of an expert-parallel group holds, and the memory that its
/// parameters take: weights, gradients, two moments and the averaged weights.
void show_placement(const Config& config) {
  const auto& m = config.model;
  const dist::Placement placement = config.placement();
  const std::int64_t bytes = 5 * (config.precision().float64 ? 8 : 4);
  fmt::print("placement    groups of {} rank(s)\n", placement.ranks());
  for (std::int64_t rank = 0; rank < placement.ranks(); ++rank) {
    const std::int64_t count = model::count_of(model::parameter_specs(m, placement, rank));
    std::string layers;
    for (std::int64_t layer = 0; layer < m.depth; ++layer) {
      layers += layer ? " | " : "";
      layers +=
          m.selects(layer) ? fmt::format("{}", fmt::join(placement.held(rank, layer), ",")) : "all";
    }
    fmt::print("  rank {:<4} {:>10} parameters, {:>8.1f} MB; candidates by layer {}\n", rank, count,
               double(count * bytes) / 1e6, layers);
  }
}

void show_parameters(const LoadedWeights& weights) {
  fmt::print("step {}, {} parameters\n", weights.step, model::count_of(weights.parameters.specs()));
  for (const auto& spec : weights.parameters.specs()) {
    const at::Tensor p = weights.parameters[spec.name];
    std::string shape;
    for (const auto extent : spec.shape)
      shape += fmt::format("{}{}", shape.empty() ? "" : "x", extent);
    fmt::print("  {:<40} {:>14}  mean {:+.3e}  deviation {:.3e}\n", spec.name,
               shape.empty() ? "scalar" : shape, p.mean().item<double>(),
               p.numel() > 1 ? p.std().item<double>() : 0.0);
  }
}

/// Prints for each selecting layer how often each candidate is selected, over t_d: the noisiest
/// diffusion steps are on the right.
void show_selection(const LoadedWeights& weights) {
  const at::NoGradGuard no_grad;
  const auto& config = weights.config.model;
  const model::Denoiser denoiser(config, weights.parameters, {});
  const auto routing = denoiser.route(at::arange(config.diffusion_steps, at::kLong));
  if (routing.empty()) return;
  fmt::print(
      "selection at step {}: how often each candidate is selected, over t_d = 0 .. {} (' ' never, "
      "'#' always)\n",
      weights.step, config.diffusion_steps - 1);
  const std::string shades = " .:-=+*%#";
  for (const auto& layer : routing) {
    const at::Tensor share = layer.mask.to(at::kDouble).mean(0);  // [t_d, N]
    const auto parts = share.chunk(kColumns, 0);
    std::string rows;
    for (std::int64_t n = 0; n < config.candidates; ++n) {
      rows += fmt::format("  candidate {:>2} |", n);
      for (const auto& part : parts) {
        const double value = part.select(1, n).mean().item<double>();
        rows += shades[static_cast<std::size_t>(value * double(shades.size() - 1) + 0.5)];
      }
      rows += fmt::format("| {:5.1f}%\n", 100 * share.select(1, n).mean().item<double>());
    }
    const std::string name = fmt::format("blocks.{}.router.lateral.", layer.layer);
    const at::Tensor moved = layer.mask.ne(layer.mask.narrow(0, 0, 1)).any(2).any(0);  // [t_d]
    fmt::print("layer {}{}, selection differs between spiking steps at {:.1f}% of t_d\n{}",
               layer.layer,
               config.lateral ? fmt::format(": gamma {:+.4f}, threshold {:.4f}",
                                            weights.parameters[name + "gamma"].item<double>(),
                                            weights.parameters[name + "threshold"].item<double>())
                              : "",
               100 * moved.to(at::kDouble).mean().item<double>(), rows);
  }
}

/// Prints firing rates by layer and site, synaptic operations, and the energy estimate that is
/// customary for spiking networks.
void show_spikes(const LoadedWeights& weights, const Config& config) {
  const auto images = open_images(config);
  const std::int64_t count = std::min<std::int64_t>(16, images.count());
  std::vector<std::int64_t> indices;
  for (std::int64_t i = 0; i < count; ++i) indices.push_back(i * images.count() / count);
  const at::Tensor x0 = model::to_signal(pixels_of(images, indices), at::kFloat);
  const auto activity = watch_spikes(weights.config, weights.parameters, x0);
  const char* const sites[] = {"input", "q", "k", "v", "attention", "z", "hidden"};
  fmt::print(
      "spikes at step {}: {} images of {}, evenly spaced t_d; percentage of neurons that fire\n",
      weights.step, count, config.data.path);
  fmt::print("  layer");
  for (const char* site : sites) fmt::print("{:>10}", site);
  fmt::print("  synaptic operations per call and image\n");
  for (std::size_t layer = 0; layer < activity.layers().size(); ++layer) {
    const auto& seen = activity.layers()[layer];
    fmt::print("  {:>5}", layer);
    for (const char* site : sites) fmt::print("{:>9.2f}%", 100 * seen.rates.at(site).value());
    fmt::print("  {:.3g}\n", seen.accumulations / double(count));
  }
  const double adds = activity.accumulations() / double(count);
  const double real = model::real_multiply_adds(config.model);
  const double dense = model::dense_multiply_adds(config.model);
  const double spiking = adds * model::kAccumulatePicojoules + real * model::kMultiplyAddPicojoules;
  const double usual = dense * model::kMultiplyAddPicojoules;
  fmt::print(
      "energy       per call and image: {:.4g} synaptic operations and {:.4g} multiply-adds "
      "(patches, time, gates, head), {:.4g} uJ\n"
      "             the same network with real-valued activations and one spiking step: {:.4g} "
      "multiply-adds, {:.4g} uJ, {:.2f} times as much\n"
      "             per image of {} sampling steps: {:.4g} mJ\n"
      "             (0.9 pJ per accumulation, 4.6 pJ per multiply-add, 45 nm, Horowitz 2014; "
      "arithmetic only: moving data, which often costs more, is left out)\n",
      adds, real, spiking * 1e-6, dense, usual * 1e-6, usual / spiking, config.sampling.steps,
      spiking * 1e-9 * double(config.sampling.steps));
}

struct Request {
  RunWeights weights;
  bool parameters = false, spikes = false;
  bool plan = false;
  std::string config, link = "100Gbit";
  Settings settings;
  std::int64_t ranks = 1;
  double speed = 0;
};

/// Prints the cost model's estimate for each EP x DP layout of a cluster. Returns the exit status.
int show_plan(const Request& request, dist::World& world) {
  if (request.config.empty()) throw UsageError("inspect --plan: give the --config to plan for");
  const Config config = read_config(request.config, request.settings);
  Cluster cluster{request.ranks, link_rate(request.link), request.speed};
  if (request.speed == 0) {
    cluster.samples_per_second = training_speed(config, world);
    fmt::print(
        "one rank trains {:.3g} samples/s, measured here on {} with {} thread(s); give --speed "
        "for another machine\n",
        cluster.samples_per_second, world.device().description(), at::get_num_threads());
  }
  const auto costs = layout_costs(config, cluster);
  const auto best = std::max_element(costs.begin(), costs.end(), [](const auto& a, const auto& b) {
    return a.samples_per_second < b.samples_per_second;
  });
  fmt::print("{} rank(s), {} in each direction, batch {}, {}; one step on the busiest rank\n",
             cluster.ranks, request.link, config.training.batch, config.training.precision);
  fmt::print("{:>4} {:>6} {:>11} {:>11} {:>11} {:>9} {:>9} {:>9} {:>9} {:>10}\n", "EP", "DP",
             "memory MB", "exchange MB", "gradient MB", "compute", "exchange", "gradient", "step s",
             "samples/s");
  for (const auto& c : costs) {
    fmt::print(
        "{:>4} {:>6} {:>11.1f} {:>11.2f} {:>11.2f} {:>9.4f} {:>9.4f} {:>9.4f} {:>9.4f} "
        "{:>10.4g}{}\n",
        c.expert, c.data, 1e-6 * double(c.memory_bytes), 1e-6 * c.exchange_bytes,
        1e-6 * c.gradient_bytes, c.compute_seconds, c.exchange_seconds, c.gradient_seconds,
        c.step_seconds, c.samples_per_second, &c == &*best ? "  best" : "");
  }
  fmt::print(
      "memory: weights, gradients, moments, averaged weights. Assumptions: each rank gets 0.7 of "
      "the link's rate, the exchange overlaps with nothing,\ngradient sums overlap with the "
      "backward pass, routing is that of a freshly initialised model. `bench scaling` measures.\n");
  return 0;
}

int inspect(const Request& request, dist::World& world) {
  require_single_process(world, "inspect");
  if (request.plan) return show_plan(request, world);
  if (request.weights.run.empty()) {
    throw UsageError("inspect: give the --run to look at, or --plan with a --config");
  }
  const fs::path run = request.weights.run;
  const Config now = read_run_config(run, {});
  const auto steps = complete_checkpoints(run);
  show_run(run);
  show_placement(now);
  if (steps.empty()) return 0;
  const auto weights = load_weights(request.weights, at::kFloat);
  show_selection(weights);
  if (request.spikes) show_spikes(weights, now);
  if (request.parameters) show_parameters(weights);
  return 0;
}

}  // namespace

void add_inspect(CLI::App& app, Action& action) {
  const auto request = std::make_shared<Request>();
  auto* verb = app.add_subcommand(
      "inspect",
      "Show a run in one screen and what its routers choose, or plan the layout of a cluster");
  add_weights_options(*verb, request->weights);
  verb->get_option("--run")->required(false);
  verb->add_flag("--parameters", request->parameters,
                 "Also list every parameter of the checkpoint");
  verb->add_flag("--spikes", request->spikes,
                 "Also show firing rates, synaptic operations and energy on images of data.path");
  auto* plan = verb->add_flag(
      "--plan", request->plan,
      "Estimate which EP x DP trains --config fastest on --ranks ranks (cost model)");
  verb->add_option("--config", request->config, "With --plan: the TOML file to plan for")
      ->needs(plan);
  verb->add_option("--set", request->settings,
                   "With --plan: override a key, table.key=value; repeatable")
      ->take_all()
      ->allow_extra_args(false)
      ->needs(plan);
  verb->add_option("--ranks", request->ranks, "With --plan: the number of ranks")
      ->needs(plan)
      ->check(CLI::PositiveNumber);
  verb->add_option("--link", request->link, "With --plan: the link of a rank, in each direction")
      ->needs(plan)
      ->capture_default_str();
  verb->add_option("--speed", request->speed,
                   "With --plan: samples/s that a single rank trains (measured here if not given)")
      ->needs(plan)
      ->check(CLI::PositiveNumber);
  verb->callback([&action, request] {
    action.run = [request](dist::World& world) { return inspect(*request, world); };
  });
}

}  // namespace laterna::launch
