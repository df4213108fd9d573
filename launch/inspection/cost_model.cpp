#include "launch/inspection/cost_model.h"

#include <ATen/ATen.h>
#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <cmath>
#include <numeric>

#include "dist/experts/sample_placement.h"
#include "model/denoiser.h"
#include "model/initialise.h"
#include "model/spiking/spikes.h"

namespace laterna::launch {
namespace {

constexpr std::int64_t kMostSamples = 256;  // of a group to plan; loads of more are scaled up
constexpr double kBackward = 2.0 / 3;       // share of the backward pass in the computation
constexpr double kReached = 0.7;            // share of the link's rate

/// Returns the selections of a freshly initialised model for the first samples of the first step.
dist::Routing fresh_routing(const Config& config, std::int64_t samples) {
  const at::NoGradGuard no_grad;
  model::Parameters parameters(model::parameter_specs(config.model), at::kFloat, false);
  model::initialise(parameters, config.model, config.training.seed);
  const model::Denoiser denoiser(config.model, parameters, {});
  const auto draws = model::Diffusion(config.diffusion)
                         .draw(config.training.seed, 0, 0, samples, {1, 1, 1}, at::kFloat);
  return denoiser.route(draws.t);
}

/// The load of one rank in one step, in token blocks.
struct RankLoad {
  double assignments = 0, sent = 0, received = 0;
};

/// Returns the loads of the ranks of a group, with samples placed as the trainer places them.
std::vector<RankLoad> loads_of(const dist::Placement& placement, const dist::Routing& routing,
                               const std::vector<std::int64_t>& counts) {
  const auto placed = dist::place_samples(placement, routing, counts, {});
  std::vector<std::int64_t> order, first{0};
  for (const auto& samples : placed) {
    order.insert(order.end(), samples.begin(), samples.end());
    first.push_back(std::ssize(order));
  }
  const at::Tensor by_rank = at::tensor(order, at::kLong);
  std::vector<RankLoad> loads(counts.size());
  for (const auto& layer : routing) {
    const dist::LayerRouting part{layer.layer, layer.probability.index_select(1, by_rank),
                                  layer.mask.index_select(1, by_rank)};
    for (std::size_t rank = 0; rank < loads.size(); ++rank) {
      const auto plan = dist::plan_layer(placement, static_cast<std::int64_t>(rank), part, first);
      loads[rank].assignments += double(std::count(plan.local.begin(), plan.local.end(), 1) +
                                        std::count(plan.remote.begin(), plan.remote.end(), 1));
      loads[rank].sent += double(plan.sent.size());
      loads[rank].received += double(plan.received.size());
    }
  }
  return loads;
}

/// Returns the candidates' share of a training step's multiply-adds: 2 h k of the 2 h k + 4
/// products with D x D weights.
double candidates_share(const model::ModelConfig& m) {
  const double candidates = 2.0 * double(m.hidden_ratio * m.selected);
  return candidates / (candidates + 4);
}

/// Returns the bytes that each rank sends in an all-reduce of `bytes` over `ranks`: its part of the
/// other ranks' slices, then the sum of its own slice.
double sum_bytes(double bytes, std::int64_t ranks) {
  return 2 * bytes * double(ranks - 1) / double(ranks);
}

void add_exchange(LayoutCost& cost, const Config& config, const dist::Routing& routing,
                  std::int64_t group_batch, double link) {
  const auto& m = config.model;
  const std::int64_t samples = routing.empty() ? 0 : routing[0].mask.size(1);
  if (cost.expert == 1 || samples == 0) return;
  std::vector<std::int64_t> counts;
  for (std::int64_t rank = 0; rank < cost.expert; ++rank) {
    counts.push_back(samples / cost.expert + (rank < samples % cost.expert ? 1 : 0));
  }
  const auto loads = loads_of({m.candidates, cost.expert}, routing, counts);
  const double scale = double(group_batch) / double(samples);
  const double elements = double(m.tokens() * m.width);
  const double size = config.precision().float64 ? 8 : 4;
  const double dense = elements * (config.precision().bfloat16_products ? 2 : size);
  const double packed = double(m.tokens() * model::message_bytes(m.width));
  const double scalars = double(m.candidates) * size;
  double assignments = 0, most = 0;
  for (const auto& load : loads) {
    const double out = load.sent * (packed + dense) + load.received * (2 * dense + scalars);
    const double in = load.received * (packed + dense) + load.sent * (2 * dense + scalars);
    cost.exchange_bytes = std::max(cost.exchange_bytes, scale * std::max(out, in));
    assignments += load.assignments / double(loads.size());
    most = std::max(most, load.assignments);
  }
  cost.imbalance = most / assignments;
  cost.exchange_seconds = cost.exchange_bytes / (kReached * link);
}

}  // namespace

std::vector<LayoutCost> layout_costs(const Config& config, const Cluster& cluster) {
  const auto& m = config.model;
  const double size = config.precision().float64 ? 8 : 4;
  const std::int64_t busiest = (config.training.batch + cluster.ranks - 1) / cluster.ranks;
  std::vector<LayoutCost> costs;
  for (std::int64_t expert = 1; expert <= std::min(m.candidates, cluster.ranks); ++expert) {
    if (cluster.ranks % expert != 0) continue;
    LayoutCost cost{.expert = expert, .data = cluster.ranks / expert};
    const dist::Placement placement(m.candidates, expert);
    double shared = 0, candidates = 0;
    for (std::int64_t rank = 0; rank < expert; ++rank) {
      const auto specs = model::parameter_specs(m, placement, rank);
      if (model::count_of(specs) <= cost.parameters) continue;
      cost.parameters = model::count_of(specs);
      shared = candidates = 0;
      for (const auto& spec : specs) (spec.candidate ? candidates : shared) += size * spec.size;
    }
    cost.memory_bytes = cost.parameters * 5 * static_cast<std::int64_t>(size);
    cost.gradient_bytes = sum_bytes(shared, cluster.ranks) + sum_bytes(candidates, cost.data);
    const std::int64_t group_batch = (config.training.batch + cost.data - 1) / cost.data;
    add_exchange(cost, config, fresh_routing(config, std::min(group_batch, kMostSamples)),
                 group_batch, cluster.link);
    const double share = candidates_share(m);
    cost.compute_seconds =
        double(busiest) / cluster.samples_per_second * (1 - share + share * cost.imbalance);
    cost.gradient_seconds = std::max(
        0.0, cost.gradient_bytes / (kReached * cluster.link) - kBackward * cost.compute_seconds);
    cost.step_seconds = cost.compute_seconds + cost.exchange_seconds + cost.gradient_seconds;
    cost.samples_per_second = double(config.training.batch) / cost.step_seconds;
    costs.push_back(cost);
  }
  return costs;
}

double link_rate(const std::string& text) {
  double value = 0;
  const char* end = text.data() + text.size();
  const auto [rest, error] = std::from_chars(text.data(), end, value);
  const std::string unit(rest, end);
  const double bits = unit == "Mbit" ? 1e6 : unit == "Gbit" ? 1e9 : unit == "Tbit" ? 1e12 : 0;
  if (error != std::errc() || !(value > 0) || bits == 0) {
    throw UsageError(
        fmt::format("--link {}: is not a rate; allowed: a number with Mbit, Gbit or Tbit, such as "
                    "400Gbit",
                    text));
  }
  return value * bits / 8;
}

}  // namespace laterna::launch
