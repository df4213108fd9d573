// `laterna bench exchange`: bytes and time of the planned, bit-packed exchange of a training step,
// compared with a conventional one (counts exchanged in every layer and spiking step, one dense
// token block per sample and candidate) on the same ranks, without the computation in between. The
// load is what freshly initialised routers select for the random draws of a training step.
#include <ATen/ATen.h>
#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <nlohmann/json.hpp>
#include <numeric>

#include "data/host.h"
#include "data/partition.h"
#include "dist/agreement.h"
#include "launch/bench/bench.h"
#include "launch/collective.h"
#include "launch/training/trainer.h"
#include "model/initialise.h"
#include "model/spiking/spikes.h"

namespace laterna::launch {
namespace {

using data::seconds_since;

using Clock = std::chrono::steady_clock;
using dist::Transfer;
using nlohmann::json;

/// The selections of this rank's samples in one training step, and the number of samples of each
/// rank. All ranks form one expert-parallel group.
struct Load {
  dist::Placement placement;
  std::vector<std::int64_t> counts;
  dist::Routing mine;
  at::Tensor blocks;  // [T*B, M*D] this rank's token blocks on its device; values do not matter
  at::Tensor spikes;  // as many token blocks in the packed form in which training sends them
};

Load load_of(const Config& config, dist::World& world) {
  const auto& m = config.model;
  Load load{{m.candidates, world.size()}, {}, {}, {}, {}};
  for (int rank = 0; rank < world.size(); ++rank) {
    load.counts.push_back(data::share_of(config.training.batch, rank, world.size()).count);
  }
  const at::NoGradGuard no_grad;
  model::Parameters parameters(model::parameter_specs(m), at::kFloat, false);
  model::initialise(parameters, m, config.training.seed);
  const model::Denoiser denoiser(m, parameters, {});
  const model::Diffusion diffusion(config.diffusion);
  const data::Share mine = data::share_of(config.training.batch, world.rank(), world.size());
  const auto draws =
      diffusion.draw(config.training.seed, 0, mine.first, mine.count, {1, 1, 1}, at::kFloat);
  load.mine = denoiser.route(draws.t);
  load.blocks =
      at::zeros({m.spiking_steps * mine.count, m.tokens() * m.width}, world.device().torch());
  load.spikes = model::Spikes::of(load.blocks.view({-1, m.width})).message(m.tokens());
  return load;
}

/// What this rank has sent so far.
struct Moved {
  std::int64_t bytes = 0;     // in total
  std::int64_t dispatch = 0;  // of these, spikes z sent to their candidates
};

/// Runs all transfers of a training step, forward and backward, as Laterna does.
class Planned {
 public:
  Planned(const Load& load, dist::Communicator& group, at::ScalarType payload,
          dist::Placing placing)
      : load_(load), group_(group), exchange_(group), payload_(payload), placing_(placing) {}

  void step() {
    const auto began = Clock::now();
    const auto most = *std::max_element(load_.counts.begin(), load_.counts.end());
    const auto plan = dist::plan_step(group_, load_.placement, load_.mine, load_.counts,
                                      std::max<std::int64_t>(1, most), 1, placing_);
    for (const auto& layer : load_.mine) {  // the plan's all-gather
      const std::int64_t bytes = layer.mask.nbytes() + layer.probability.nbytes();
      planning_ += bytes * (group_.size() - 1);
    }
    planning_seconds_ = seconds_since(began);
    const auto& layers = plan.micro_batches[0];
    assignments_ = 0;
    for (const auto& layer : layers) {
      assignments_ += std::count(layer.local.begin(), layer.local.end(), 1) +
                      std::count(layer.remote.begin(), layer.remote.end(), 1);
      forward(layer);
    }
    for (auto layer = layers.rbegin(); layer != layers.rend(); ++layer) backward(*layer);
  }
  Moved moved() const {
    Moved all{planning_, exchange_.traffic()[0].bytes};
    for (const auto& transfer : exchange_.traffic()) all.bytes += transfer.bytes;
    return all;
  }
  double planning_seconds() const { return planning_seconds_; }
  /// Returns the number of assignments that this rank computed in the last step.
  std::int64_t assignments() const { return assignments_; }

 private:
  at::Tensor receive_buffer(Transfer transfer, std::int64_t rows) {
    return exchange_.receive_buffer(transfer, rows, load_.blocks.size(1),
                                    load_.blocks.options().dtype(payload_));
  }
  void forward(const dist::LayerPlan& plan) {
    const std::int64_t arriving = std::ssize(plan.received);
    const at::Tensor spikes = at::empty({arriving, load_.spikes.size(1)}, load_.spikes.options());
    exchange_.send_out(Transfer::dispatch, plan, load_.spikes, spikes).wait();
    const at::Tensor sums = at::empty({arriving, load_.blocks.size(1)}, load_.blocks.options());
    const at::Tensor back = receive_buffer(Transfer::combine, std::ssize(plan.sent));
    exchange_.send(Transfer::combine, plan, sums, back).wait();
    back.to(at::kFloat);
  }
  void backward(const dist::LayerPlan& plan) {
    const at::Tensor there = receive_buffer(Transfer::combine_backward, std::ssize(plan.received));
    const at::Tensor back = receive_buffer(Transfer::dispatch_backward, std::ssize(plan.sent));
    const auto options = load_.blocks.options();
    const at::Tensor scalars = at::zeros({there.size(0), load_.placement.candidates()}, options);
    const at::Tensor scalars_back = at::empty({back.size(0), scalars.size(1)}, options);
    exchange_.send_out(Transfer::combine_backward, plan, load_.blocks, there).wait();
    const at::Tensor gradients = there.to(at::kFloat);
    auto dense = exchange_.send(Transfer::dispatch_backward, plan, gradients, back);
    exchange_.send(Transfer::dispatch_backward, plan, scalars, scalars_back, dist::Rows::scalars)
        .wait();
    dense.wait();
    back.to(at::kFloat);
  }

  const Load& load_;
  dist::Communicator& group_;
  dist::Exchange exchange_;
  at::ScalarType payload_;  // of sums and gradients
  dist::Placing placing_;
  std::int64_t planning_ = 0, assignments_ = 0;
  double planning_seconds_ = 0;
};

/// Runs the transfers of a training step as systems do that learn the routing only in the forward
/// pass: in every layer and spiking step first the counts, then one dense token block for each
/// (sample, candidate) and as many back; then the gradients of both.
class Conventional {
 public:
  Conventional(const Load& load, dist::Communicator& group, at::ScalarType payload)
      : load_(load), group_(group), options_(load.blocks.options().dtype(payload)) {}

  void step() {
    for (const auto& layer : load_.mine) {
      for (std::int64_t t = 0; t < layer.mask.size(0); ++t) {
        const auto [out, in] = agree(layer, t);
        moved_.dispatch += move(out, in);  // z
        move(in, out);                     // outputs
        move(out, in);                     // gradients of the outputs
        move(in, out);                     // gradients of z
      }
    }
  }
  Moved moved() const { return moved_; }

 private:
  using Rows = std::vector<std::int64_t>;

  std::pair<Rows, Rows> agree(const dist::LayerRouting& layer, std::int64_t t) {
    const std::int64_t ranks = load_.placement.ranks();
    const at::Tensor counts = at::zeros({ranks, 1}, at::kLong);
    const auto mask = layer.mask.accessor<std::uint8_t, 3>();
    const auto replicas = load_.placement.all_replicas(layer.layer);
    for (std::int64_t b = 0; b < layer.mask.size(1); ++b) {
      for (std::int64_t j = 0; j < load_.placement.candidates(); ++j) {
        if (!mask[t][b][j] || load_.placement.holds(group_.rank(), layer.layer, j)) continue;
        counts.mutable_data_ptr<std::int64_t>()[replicas[j][b % replicas[j].size()]] += 1;
      }
    }
    const at::Tensor out = counts.to(options_.device()), in = at::empty_like(out);
    const Rows one(static_cast<std::size_t>(ranks), 1);
    group_.all_to_all_v(out, one, in, one)->wait();
    moved_.bytes += 8 * (ranks - 1);
    const auto rows = [](const at::Tensor& counts_there) {
      const at::Tensor here = counts_there.cpu();
      const auto* first = here.const_data_ptr<std::int64_t>();
      return Rows(first, first + here.size(0));
    };
    return {rows(out), rows(in)};
  }
  std::int64_t move(const Rows& out, const Rows& in) {
    const auto sum = [](const Rows& rows) { return std::accumulate(rows.begin(), rows.end(), 0L); };
    const at::Tensor from = at::zeros({sum(out), load_.blocks.size(1)}, options_);
    const at::Tensor to = at::empty({sum(in), load_.blocks.size(1)}, options_);
    group_.all_to_all_v(from, out, to, in)->wait();
    const auto bytes = static_cast<std::int64_t>(from.nbytes());
    moved_.bytes += bytes;
    return bytes;
  }

  const Load& load_;
  dist::Communicator& group_;
  at::TensorOptions options_;
  Moved moved_;
};

/// Collective. Returns the value of every rank, in rank order.
std::vector<double> of_all(dist::World& world, double mine) {
  const at::Tensor all =
      dist::gather_facts(world.control(), at::full({1}, mine, at::kDouble)).flatten();
  return {all.const_data_ptr<double>(), all.const_data_ptr<double>() + all.numel()};
}

double sum(const std::vector<double>& values) {
  return std::accumulate(values.begin(), values.end(), 0.0);
}

/// Collective. Runs steps of `exchange` for about `seconds` and returns the bytes of a step, summed
/// over all ranks, and the median and the fastest time.
template <typename Kind>
json measure(Kind& exchange, const Load& load, dist::World& world, double seconds) {
  exchange.step();
  const double bytes = sum(of_all(world, double(exchange.moved().bytes)));
  const double dispatch = sum(of_all(world, double(exchange.moved().dispatch)));
  std::vector<double> runs;
  const auto began = Clock::now();
  while (broadcast_from_root(world, seconds_since(began) < seconds || runs.size() < 5)) {
    world.control().barrier()->wait();
    const auto start = Clock::now();
    exchange.step();
    if (!load.blocks.is_cpu()) load.blocks.flatten()[0].item();  // waits for the GPU
    world.control().barrier()->wait();
    runs.push_back(seconds_since(start));
  }
  return {{"bytes", std::int64_t(bytes)},
          {"dispatch_bytes", std::int64_t(dispatch)},
          {"seconds", median(runs)},
          {"fastest_seconds", *std::min_element(runs.begin(), runs.end())},
          {"steps", runs.size()}};
}

json measure_planned(const Load& load, dist::World& world, double seconds, at::ScalarType payload,
                     dist::Placing placing) {
  Planned exchange(load, world.exchange(), payload, placing);
  json facts = measure(exchange, load, world, seconds);
  const auto assignments = of_all(world, double(exchange.assignments()));
  facts["planning_seconds"] = exchange.planning_seconds();
  facts["imbalance"] = *std::max_element(assignments.begin(), assignments.end()) /
                       (sum(assignments) / double(world.size()));
  return facts;
}

json measure_conventional(const Load& load, dist::World& world, double seconds,
                          at::ScalarType payload) {
  Conventional exchange(load, world.exchange(), payload);
  return measure(exchange, load, world, seconds);
}

void print(const json& all) {
  const auto number = [&](const char* name, const char* fact) {
    return all[name][fact].get<double>();
  };
  for (const char* wire : {"float32", "bfloat16"}) {
    const std::string against = fmt::format("conventional_{}", wire);
    for (const char* kind : {"conventional", "planned", "placed"}) {
      const std::string name = fmt::format("{}_{}", kind, wire);
      const auto ratio = [&](const char* fact) {
        return number(name.c_str(), fact) / number(against.c_str(), fact);
      };
      fmt::print(
          "{:<22} {:>10.2f} MB per step, {:.3f} of the conventional bytes; forward dispatch "
          "1/{:<5.1f} {:>9.2f} ms, {:.2f} of the conventional time\n",
          name, 1e-6 * number(name.c_str(), "bytes"), ratio("bytes"), 1 / ratio("dispatch_bytes"),
          1e3 * number(name.c_str(), "seconds"), ratio("seconds"));
    }
  }
  fmt::print(
      "planning a step: {:.2f} ms, {:.2f} ms with sample placement; assignments of the busiest "
      "rank: {:.2f} of the mean, {:.2f} with sample placement\n",
      1e3 * number("planned_float32", "planning_seconds"),
      1e3 * number("placed_float32", "planning_seconds"), number("planned_float32", "imbalance"),
      number("placed_float32", "imbalance"));
}

}  // namespace

int bench_exchange(const Config& config, dist::World& world, double seconds) {
  if (world.size() == 1) {
    throw CollectiveError(2,
                          "bench exchange measures transfers between ranks; start it with mpirun "
                          "-n 2 or more");
  }
  world.form_groups(world.size(), dist::Placement(config.model.candidates, world.size()).shards());
  const Load load = load_of(config, world);
  if (load.mine.empty()) {
    throw CollectiveError(
        2, "model.selection = none leaves nothing to exchange; choose another selection");
  }
  using dist::Placing;
  json all = {{"benchmark", "exchange"},
              {"ranks", world.size()},
              {"batch", config.training.batch},
              {"device", world.device().description()}};
  for (const bool bfloat16 : {false, true}) {
    const std::string wire = bfloat16 ? "bfloat16" : "float32";
    const at::ScalarType payload = bfloat16 ? at::kBFloat16 : at::kFloat;
    all["conventional_" + wire] = measure_conventional(load, world, seconds, payload);
    all["planned_" + wire] = measure_planned(load, world, seconds, payload, Placing::consecutive);
    all["placed_" + wire] = measure_planned(load, world, seconds, payload, Placing::by_time);
  }
  if (world.rank() != 0) return 0;
  print(all);
  fmt::print("{}\n", all.dump());
  return 0;
}

}  // namespace laterna::launch
