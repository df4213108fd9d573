// `laterna bench scaling`: the speed of training with every layout EP x DP of these ranks, and how
// long a step waits for what. The baseline is EP = 1, pure data parallelism.
#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <fmt/format.h>

#include <chrono>
#include <memory>
#include <nlohmann/json.hpp>

#include "data/host.h"
#include "launch/bench/bench.h"
#include "launch/bench/random_images.h"
#include "launch/collective.h"
#include "launch/training/trainer.h"

namespace laterna::launch {
namespace {

using data::seconds_since;

using Clock = std::chrono::steady_clock;
using nlohmann::json;

json measure_layout(const Config& config, const data::ImageSet& images, dist::World& world,
                    double seconds) {
  form_groups(world, config);
  Trainer trainer(config, images, world);
  trainer.start(0);
  StopRequest stop(images.folder(), 0, world.control());
  std::vector<double> runs, data, gradients, exchange;
  double imbalance = 0;
  std::int64_t bytes = 0;
  const auto began = Clock::now();
  for (int step = 0; broadcast_from_root(world, seconds_since(began) < seconds || step < 8);
       ++step) {
    const auto record = trainer.train_step(stop);
    if (step < 3) continue;  // warm-up: allocators settle
    runs.push_back(record->seconds);
    data.push_back(record->data_wait_seconds);
    gradients.push_back(record->communication_wait_seconds);
    exchange.push_back(0);
    bytes = 0;
    for (const auto& transfer : record->exchange) {
      exchange.back() += transfer.wait_seconds;
      bytes += transfer.bytes;
    }
    imbalance += record->imbalance;
  }
  return {{"expert", config.parallel.expert},
          {"data", world.size() / config.parallel.expert},
          {"samples_per_second", double(config.training.batch) / median(runs)},
          {"step_seconds", median(runs)},
          {"data_wait_seconds", median(data)},
          {"gradient_wait_seconds", median(gradients)},
          {"exchange_wait_seconds", median(exchange)},
          {"exchange_bytes", bytes},
          {"imbalance", imbalance / double(runs.size())},
          {"parameters_a_rank", model::count_of(trainer.parameters().specs())}};
}

}  // namespace

int bench_scaling(Config config, dist::World& world, double seconds) {
  std::unique_ptr<RandomImages> images;
  run_collectively(world, [&] { images = std::make_unique<RandomImages>(config); });
  config.training.micro_batch = broadcast_from_root(world, choose_micro_batch(config, world));
  json layouts = json::array();
  for (std::int64_t expert = 1; expert <= world.size(); ++expert) {
    if (world.size() % expert != 0) continue;
    config.parallel.expert = expert;
    layouts.push_back(measure_layout(config, images->set(), world, seconds));
    if (world.rank() != 0) continue;
    const auto& l = layouts.back();
    fmt::print(
        "EP {:>2} x DP {:>2}  {:>8.1f} samples/s  step {:>8.1f} ms: waits for gradients "
        "{:.1f}, exchange {:.1f}, data {:.1f} ms; {:.2f} MB exchanged; imbalance {:.2f}\n",
        expert, world.size() / expert, l["samples_per_second"].get<double>(),
        1e3 * l["step_seconds"].get<double>(), 1e3 * l["gradient_wait_seconds"].get<double>(),
        1e3 * l["exchange_wait_seconds"].get<double>(), 1e3 * l["data_wait_seconds"].get<double>(),
        1e-6 * l["exchange_bytes"].get<double>(), l["imbalance"].get<double>());
  }
  if (world.rank() != 0) return 0;
  const json all = {{"benchmark", "scaling"},
                    {"ranks", world.size()},
                    {"threads", at::get_num_threads()},
                    {"batch", config.training.batch},
                    {"layouts", layouts}};
  fmt::print("{}\n", all.dump());
  return 0;
}

}  // namespace laterna::launch
