// `laterna inspect`: a run in one screen, a checkpoint's content, and what the routers choose over
// all diffusion steps, which follows from their few parameters alone.
#include <ATen/ATen.h>
#include <fmt/format.h>

#include <algorithm>
#include <memory>

#include "data/error.h"
#include "launch/checkpoint.h"
#include "launch/run_folder.h"
#include "launch/together.h"
#include "launch/verbs.h"
#include "model/denoiser.h"
#include "monitoring/run_log.h"

namespace laterna::launch {
namespace {

namespace fs = std::filesystem;

constexpr std::int64_t kColumns = 20;  // stretches of t_d in the selection's picture

void show_run(const fs::path& run, const std::vector<std::int64_t>& steps) {
  const Config config = read_config(run / "config.toml", {});
  const auto log = monitoring::read_log(run / "log.jsonl");
  const std::int64_t done = log.empty() ? 0 : log.back().step;
  fmt::print("run          {}\n", run.string());
  fmt::print("state        {} of {} steps ({:.1f}%)\n", done, config.training.steps,
             100.0 * double(done) / double(config.training.steps));
  fmt::print(
      "model        {0}x{0}x{1}, patch {2}, width {3}, depth {4}, heads {5}, T {6}, N {7}, "
      "k {8}, selection {9}, lateral {10}\n",
      config.model.image_size, config.model.channels, config.model.patch, config.model.width,
      config.model.depth, config.model.heads, config.model.spiking_steps, config.model.candidates,
      config.model.selected, config.model.selection, config.model.lateral ? "on" : "off");
  fmt::print("data         {}\n", config.data.path);
  if (!log.empty()) {
    const std::size_t recent = std::min<std::size_t>(100, log.size());
    double loss = 0, speed = 0;
    for (std::size_t i = log.size() - recent; i < log.size(); ++i) {
      loss += log[i].loss / double(recent);
      speed += log[i].seconds / double(recent);
    }
    fmt::print("loss         {:.5f} (mean of the last {} steps; the first step's was {:.5f})\n",
               loss, recent, log.front().loss);
    fmt::print("speed        {:.1f} samples/s\n", double(config.training.batch) / speed);
  }
  if (steps.empty()) fmt::print("checkpoints  none yet\n");
  for (const auto step : steps) {
    const Manifest manifest = read_manifest(run, step);
    std::int64_t bytes = 0;
    for (const auto& file : manifest.files) bytes += file.bytes;
    fmt::print("checkpoint   step {}, {:.1f} MB, {} file(s)\n", step, double(bytes) / 1e6,
               manifest.files.size());
  }
}

void show_parameters(const LoadedWeights& weights) {
  fmt::print("step {}, {} parameters\n", weights.step, weights.parameters.count());
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

/// For each selecting layer: each candidate's share of the visits over t_d, noisy to the right.
void show_selection(const LoadedWeights& weights) {
  const at::NoGradGuard no_grad;
  const auto& config = weights.config.model;
  const model::Denoiser denoiser(config, weights.parameters, {});
  const auto routing = denoiser.route(at::arange(config.diffusion_steps, at::kLong));
  if (routing.empty()) return;
  fmt::print(
      "selection of step {}: each candidate's share over t_d = 0 .. {} (' ' never, '#' always)\n",
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
    fmt::print("layer {}{}, differs between spiking steps at {:.1f}% of t_d\n{}", layer.layer,
               config.lateral ? fmt::format(": gamma {:+.4f}, threshold {:.4f}",
                                            weights.parameters[name + "gamma"].item<double>(),
                                            weights.parameters[name + "threshold"].item<double>())
                              : "",
               100 * moved.to(at::kDouble).mean().item<double>(), rows);
  }
}

}  // namespace

void add_inspect(CLI::App& app, Action& action) {
  struct Request {
    RunWeights weights;
    bool parameters = false;
  };
  const auto request = std::make_shared<Request>();
  auto* verb = app.add_subcommand("inspect", "A run in one screen, and what its routers choose");
  add_weights_options(*verb, request->weights);
  verb->add_flag("--parameters", request->parameters, "Also every parameter of the checkpoint");
  verb->callback([&action, request] {
    action = [request](dist::World& world) {
      alone(world, "inspect");
      if (!fs::exists(fs::path(request->weights.run) / "config.toml")) {
        throw data::InputError(request->weights.run + ": is no run folder (it has no config.toml)");
      }
      const auto steps = complete_checkpoints(request->weights.run);
      show_run(request->weights.run, steps);
      if (steps.empty()) return 0;
      const auto weights = load_weights(request->weights, at::kFloat);
      show_selection(weights);
      if (request->parameters) show_parameters(weights);
      return 0;
    };
  });
}

}  // namespace laterna::launch
