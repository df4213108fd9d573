// The benchmarks of `laterna bench` that run on MPI ranks. `exchange`: what the planned, bit-packed
// exchange of a training step costs beside a conventional one (counts exchanged in every layer and
// step, one dense block a candidate) on the same ranks, without the work in between. `scaling`:
// training steps on every layout EP x DP of these ranks, EP = 1 being the honest baseline.
#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <numeric>

#include "data/glyphs.h"
#include "launch/bench.h"
#include "launch/together.h"
#include "launch/trainer.h"

namespace laterna::launch {
namespace {

using Clock = std::chrono::steady_clock;
using nlohmann::json;

double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

/// One training step's choices of this rank's samples, and how many samples each rank has.
struct Load {
  dist::Placement placement;
  std::vector<std::int64_t> counts;
  std::vector<dist::Choices> mine;
};

Load load_of(const Config& config, dist::World& world) {
  const auto& m = config.model;
  Load load{{m.candidates, world.size()}, {}, {}};
  for (int rank = 0; rank < world.size(); ++rank) {
    load.counts.push_back(share_of(config.training.batch, rank, world.size()).count);
  }
  const at::NoGradGuard no_grad;
  model::Parameters parameters(model::parameter_specs(m), at::kFloat, false);
  model::initialise(parameters, m, 0);
  const model::Denoiser denoiser(m, parameters, {});
  const model::Diffusion diffusion(config.diffusion);
  const Share mine = share_of(config.training.batch, world.rank(), world.size());
  const auto draws = diffusion.draw(0, 0, mine.first, mine.count, {1, 1, 1}, at::kFloat);
  for (const auto& layer : denoiser.route(draws.t)) {
    load.mine.push_back({layer.layer, layer.mask, layer.probability});
  }
  return load;
}

/// All legs of a step, forward and backward, as Laterna sends them.
class Planned {
 public:
  Planned(const Config& config, const Load& load, dist::World& world, bool bfloat16)
      : load_(load),
        group_(world.control()),
        exchange_(world.control(), bfloat16),
        block_(config.model.tokens() * config.model.width),
        own_(at::zeros({load.mine[0].mask.size(0) * load.mine[0].mask.size(1), block_})) {}

  void step() {
    const auto most = *std::max_element(load_.counts.begin(), load_.counts.end());
    const auto plan = dist::plan_step(group_, load_.placement, load_.mine, load_.counts,
                                      std::max<std::int64_t>(1, most), 1);
    for (const auto& layer : load_.mine) {  // the plan's all-gather
      const std::int64_t bytes = layer.mask.nbytes() + layer.gate.nbytes();
      planning_ += bytes * (group_.size() - 1);
    }
    const auto& layers = plan.rounds[0].layers;
    for (const auto& layer : layers) forward(layer);
    for (auto layer = layers.rbegin(); layer != layers.rend(); ++layer) backward(*layer);
  }
  std::int64_t bytes() const {
    std::int64_t total = planning_;
    for (const auto& leg : exchange_.traffic()) total += leg.bytes;
    return total;
  }

 private:
  void forward(const dist::LayerPlan& plan) {
    const at::Tensor there = at::empty({std::ssize(plan.received), block_});
    const at::Tensor back = at::empty({std::ssize(plan.sent), block_});
    exchange_.send_out(dist::Leg::spikes, plan, own_, there).wait();
    exchange_.send_back(dist::Leg::sums, plan, there, back).wait();
  }
  void backward(const dist::LayerPlan& plan) {
    const at::Tensor there = at::empty({std::ssize(plan.received), block_});
    const at::Tensor back = at::empty({std::ssize(plan.sent), block_});
    const at::Tensor scalars = at::zeros({there.size(0), load_.placement.candidates()});
    const at::Tensor scalars_back = at::empty({back.size(0), scalars.size(1)});
    exchange_.send_out(dist::Leg::sum_gradients, plan, own_, there).wait();
    auto dense = exchange_.send_back(dist::Leg::spike_gradients, plan, there, back);
    exchange_.send_scalars_back(plan, scalars, scalars_back).wait();
    dense.wait();
  }

  const Load& load_;
  dist::Communicator& group_;
  dist::Exchange exchange_;
  std::int64_t block_, planning_ = 0;
  at::Tensor own_;  // this rank's blocks, whatever they hold
};

/// The same movement as systems do it that learn the routing inside the forward pass: in every
/// layer and spiking step counts first, then a dense block for each (sample, candidate), and as
/// many back; the same again for the gradients.
class Conventional {
 public:
  Conventional(const Config& config, const Load& load, dist::World& world, at::ScalarType payload)
      : load_(load),
        group_(world.control()),
        rank_(world.rank()),
        payload_(payload),
        block_(config.model.tokens() * config.model.width) {}

  void step() {
    for (const auto& layer : load_.mine) {
      for (std::int64_t t = 0; t < layer.mask.size(0); ++t) {
        const auto [out, in] = agree(layer, t);
        move(out, in);  // z
        move(in, out);  // outputs
        move(out, in);  // gradients of the outputs
        move(in, out);  // gradients of z
      }
    }
  }
  std::int64_t bytes() const { return bytes_; }

 private:
  using Rows = std::vector<std::int64_t>;

  std::pair<Rows, Rows> agree(const dist::Choices& layer, std::int64_t t) {
    const std::int64_t ranks = load_.placement.ranks();
    const at::Tensor out = at::zeros({ranks, 1}, at::kLong), in = at::zeros_like(out);
    const auto mask = layer.mask.accessor<std::uint8_t, 3>();
    const auto holders = load_.placement.all_holders(layer.layer);
    for (std::int64_t b = 0; b < layer.mask.size(1); ++b) {
      for (std::int64_t j = 0; j < load_.placement.candidates(); ++j) {
        if (!mask[t][b][j] || load_.placement.holds(rank_, layer.layer, j)) continue;
        out.mutable_data_ptr<std::int64_t>()[holders[j][b % holders[j].size()]] += 1;
      }
    }
    const Rows one(static_cast<std::size_t>(ranks), 1);
    group_.all_to_all_v(out, one, in, one)->wait();
    bytes_ += 8 * (ranks - 1);
    const auto rows = [](const at::Tensor& counts) {
      const auto* first = counts.const_data_ptr<std::int64_t>();
      return Rows(first, first + counts.size(0));
    };
    return {rows(out), rows(in)};
  }
  void move(const Rows& out, const Rows& in) {
    const auto sum = [](const Rows& rows) { return std::accumulate(rows.begin(), rows.end(), 0L); };
    const at::Tensor from = at::zeros({sum(out), block_}, payload_);
    const at::Tensor to = at::empty({sum(in), block_}, payload_);
    group_.all_to_all_v(from, out, to, in)->wait();
    bytes_ += static_cast<std::int64_t>(from.nbytes());
  }

  const Load& load_;
  dist::Communicator& group_;
  std::int64_t rank_;
  at::ScalarType payload_;
  std::int64_t block_, bytes_ = 0;
};

std::int64_t sum_over(dist::World& world, std::int64_t mine) {
  const at::Tensor sum = at::full({1}, mine, at::kLong);
  world.control().all_reduce(sum)->wait();
  return sum.item<std::int64_t>();
}

/// Steps of `exchange` for about `seconds`: bytes of a step over all ranks, median seconds.
template <typename Kind>
json measure(Kind exchange, dist::World& world, double seconds) {
  exchange.step();
  const std::int64_t bytes = sum_over(world, exchange.bytes());
  std::vector<double> runs;
  const auto began = Clock::now();
  while (same_on_all_ranks(world, seconds_since(began) < seconds || runs.size() < 5)) {
    world.control().barrier()->wait();
    const auto start = Clock::now();
    exchange.step();
    world.control().barrier()->wait();
    runs.push_back(seconds_since(start));
  }
  return {{"bytes", bytes}, {"seconds", median(runs)}, {"steps", runs.size()}};
}

/// Glyphs of the model's size in a folder of this rank's own, gone with the object.
class Images {
 public:
  Images(const Config& config, int rank)
      : folder_(std::filesystem::temp_directory_path() /
                fmt::format("laterna-bench-{}-{}", getpid(), rank)) {
    data::GlyphOptions options;
    options.size = static_cast<int>(config.model.image_size);
    options.count = 256;
    options.colour = config.model.channels == 3;
    data::make_glyphs(options, folder_);
    images_ = std::make_unique<data::ImageSet>(data::ImageSet::open(folder_));
  }
  ~Images() {
    std::error_code none;
    std::filesystem::remove_all(folder_, none);
  }
  Images(const Images&) = delete;
  Images& operator=(const Images&) = delete;
  const data::ImageSet& set() const { return *images_; }

 private:
  std::filesystem::path folder_;
  std::unique_ptr<data::ImageSet> images_;
};

json measure_layout(const Config& config, const data::ImageSet& images, dist::World& world,
                    double seconds) {
  form_groups(world, config);
  Trainer trainer(config, images, world);
  trainer.start(0);
  StopRequest stop(images.folder(), world.control());
  std::vector<double> runs, data, gradients, exchange;
  double imbalance = 0;
  std::int64_t bytes = 0;
  const auto began = Clock::now();
  for (int step = 0; same_on_all_ranks(world, seconds_since(began) < seconds || step < 8); ++step) {
    const auto record = trainer.train_step(stop);
    if (step < 3) continue;  // allocators settle
    runs.push_back(record->seconds);
    data.push_back(record->data_wait_seconds);
    gradients.push_back(record->communication_wait_seconds);
    exchange.push_back(0);
    bytes = 0;
    for (const auto& leg : record->exchange) {
      exchange.back() += leg.wait_seconds;
      bytes += leg.bytes;
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

int bench_exchange(const Config& config, dist::World& world, double seconds) {
  if (world.size() == 1) {
    throw TogetherError(2,
                        "bench exchange measures what travels between ranks; start it with "
                        "mpirun -n 2 or more");
  }
  const Load load = load_of(config, world);
  if (load.mine.empty()) {
    throw TogetherError(2, "model.selection = none leaves nothing to exchange; choose another");
  }
  const json planned = measure(Planned(config, load, world, false), world, seconds);
  const json planned_rounded = measure(Planned(config, load, world, true), world, seconds);
  const json dense = measure(Conventional(config, load, world, at::kFloat), world, seconds);
  const json rounded = measure(Conventional(config, load, world, at::kBFloat16), world, seconds);
  if (world.rank() != 0) return 0;
  const auto line = [&](const char* name, const json& kind) {
    fmt::print("{:<24} {:>14} bytes a step  {:>9.2f} ms  {:>6.2f}x the bytes  {:>6.2f}x the time\n",
               name, kind["bytes"].get<std::int64_t>(), 1e3 * kind["seconds"].get<double>(),
               kind["bytes"].get<double>() / planned["bytes"].get<double>(),
               kind["seconds"].get<double>() / planned["seconds"].get<double>());
  };
  line("planned, float32", planned);
  line("planned, bfloat16", planned_rounded);
  line("conventional, float32", dense);
  line("conventional, bfloat16", rounded);
  const json all = {{"benchmark", "exchange"},
                    {"ranks", world.size()},
                    {"batch", config.training.batch},
                    {"planned_float32", planned},
                    {"planned_bfloat16", planned_rounded},
                    {"conventional_float32", dense},
                    {"conventional_bfloat16", rounded}};
  fmt::print("{}\n", all.dump());
  return 0;
}

int bench_scaling(Config config, dist::World& world, double seconds) {
  std::unique_ptr<Images> images;
  together(world, [&] { images = std::make_unique<Images>(config, world.rank()); });
  config.training.micro_batch = same_on_all_ranks(world, choose_micro_batch(config, world));
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
