#include "launch/step_totals.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <numeric>

namespace laterna::launch {

StepTotals::StepTotals(const Config& config, dist::World& world, const dist::Exchange& exchange)
    : world_(world),
      exchange_(exchange),
      before_(exchange.traffic()),
      candidates_(config.model.candidates),
      served_(static_cast<std::size_t>(world.size())) {
  for (std::int64_t layer = 0; layer < config.model.depth; ++layer) {
    if (!config.model.selects(layer)) continue;
    visits_.emplace_back(candidates_);
    selecting_.push_back(layer);
  }
}

void StepTotals::add(const model::Routing& routing) {
  for (std::size_t layer = 0; layer < routing.size(); ++layer) {
    const at::Tensor counts = routing[layer].mask.flatten(0, 1).sum(0);  // [N] int64
    for (std::int64_t n = 0; n < candidates_; ++n) {
      visits_[layer][n] += double(counts.const_data_ptr<std::int64_t>()[n]);
    }
  }
}

void StepTotals::add(const dist::RoundPlan& plan) {
  double& mine = served_[static_cast<std::size_t>(world_.rank())];
  for (const auto& layer : plan.layers) {
    mine += double(std::count(layer.own.begin(), layer.own.end(), 1) +
                   std::count(layer.guests.begin(), layer.guests.end(), 1));
  }
}

void StepTotals::sum() {
  const bool first_holder = world_.holders().rank() == 0;
  std::vector<double> facts{loss, first_holder ? candidates_squares : 0};
  for (const auto& layer : visits_) facts.insert(facts.end(), layer.begin(), layer.end());
  facts.insert(facts.end(), served_.begin(), served_.end());
  ranks_.resize(served_.size());
  ranks_[static_cast<std::size_t>(world_.rank())] = mine;
  for (const auto& rank : ranks_) {
    facts.push_back(rank.step_seconds);
    facts.push_back(double(rank.memory_bytes));
  }
  for (std::size_t leg = 0; leg < before_.size(); ++leg) {
    const auto& now = exchange_.traffic()[leg];
    facts.push_back(double(now.blocks - before_[leg].blocks));
    facts.push_back(double(now.bytes - before_[leg].bytes));
    facts.push_back(now.seconds - before_[leg].seconds);
  }
  const at::Tensor all = at::tensor(facts, at::kDouble);
  world_.control().all_reduce(all)->wait();
  const double* next = all.const_data_ptr<double>();
  loss = *next++;
  candidates_squares = *next++;
  for (auto& layer : visits_) {
    for (auto& count : layer) count = *next++;
  }
  for (auto& count : served_) count = *next++;
  for (auto& rank : ranks_) {
    rank.step_seconds = *next++;
    rank.memory_bytes = static_cast<std::int64_t>(*next++);
  }
  for (auto& leg : traffic_) {
    leg.blocks = static_cast<std::int64_t>(*next++);
    leg.bytes = static_cast<std::int64_t>(*next++);
    leg.seconds = *next++;
  }
}

void StepTotals::fill(monitoring::StepRecord& record) const {
  for (const auto& layer : visits_) record.visits.emplace_back(layer.begin(), layer.end());
  record.selecting_layers = selecting_;
  record.ranks = ranks_;
  if (exchange_.group().size() == 1) return;
  for (std::size_t leg = 0; leg < traffic_.size(); ++leg) {
    record.exchange.push_back({dist::kLegNames[leg], traffic_[leg].blocks, traffic_[leg].bytes,
                               traffic_[leg].seconds / double(world_.size())});
  }
  const double total = std::accumulate(served_.begin(), served_.end(), 0.0);
  const double busiest = *std::max_element(served_.begin(), served_.end());
  if (total > 0) record.imbalance = busiest / (total / double(served_.size()));
}

}  // namespace laterna::launch
