#include "launch/training/step_totals.h"

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
    assignments_.emplace_back(candidates_);
    selecting_.push_back(layer);
  }
}

void StepTotals::add(const model::Routing& routing) {
  for (std::size_t layer = 0; layer < routing.size(); ++layer) {
    const at::Tensor counts = routing[layer].mask.flatten(0, 1).sum(0);  // [N] int64
    for (std::int64_t n = 0; n < candidates_; ++n) {
      assignments_[layer][n] += double(counts.const_data_ptr<std::int64_t>()[n]);
    }
  }
}

void StepTotals::add(const dist::MicroBatchPlan& plan) {
  double& mine = served_[static_cast<std::size_t>(world_.rank())];
  for (const auto& layer : plan) {
    mine += double(std::count(layer.local.begin(), layer.local.end(), 1) +
                   std::count(layer.remote.begin(), layer.remote.end(), 1));
  }
}

void StepTotals::sum() {
  const bool first_replica = world_.replica_group().rank() == 0;
  std::vector<double> facts{loss, first_replica ? candidates_squares : 0};
  for (const auto& layer : assignments_) facts.insert(facts.end(), layer.begin(), layer.end());
  facts.insert(facts.end(), served_.begin(), served_.end());
  ranks_.resize(served_.size());
  ranks_[static_cast<std::size_t>(world_.rank())] = mine;
  for (const auto& rank : ranks_) {
    facts.push_back(rank.step_seconds);
    facts.push_back(double(rank.memory_bytes));
  }
  for (std::size_t transfer = 0; transfer < before_.size(); ++transfer) {
    const auto& now = exchange_.traffic()[transfer];
    facts.push_back(double(now.blocks - before_[transfer].blocks));
    facts.push_back(double(now.bytes - before_[transfer].bytes));
    facts.push_back(now.seconds - before_[transfer].seconds);
  }
  const at::Tensor all = at::tensor(facts, at::kDouble);
  world_.control().all_reduce(all)->wait();
  const double* next = all.const_data_ptr<double>();
  loss = *next++;
  candidates_squares = *next++;
  for (auto& layer : assignments_) {
    for (auto& count : layer) count = *next++;
  }
  for (auto& count : served_) count = *next++;
  for (auto& rank : ranks_) {
    rank.step_seconds = *next++;
    rank.memory_bytes = static_cast<std::int64_t>(*next++);
  }
  for (auto& transfer : traffic_) {
    transfer.blocks = static_cast<std::int64_t>(*next++);
    transfer.bytes = static_cast<std::int64_t>(*next++);
    transfer.seconds = *next++;
  }
}

void StepTotals::fill(monitoring::StepRecord& record) const {
  for (const auto& layer : assignments_)
    record.assignments.emplace_back(layer.begin(), layer.end());
  record.selecting_layers = selecting_;
  record.ranks = ranks_;
  if (exchange_.group().size() == 1) return;
  for (std::size_t transfer = 0; transfer < traffic_.size(); ++transfer) {
    record.exchange.push_back({dist::kTransferNames[transfer], traffic_[transfer].blocks,
                               traffic_[transfer].bytes,
                               traffic_[transfer].seconds / double(world_.size())});
  }
  const double total = std::accumulate(served_.begin(), served_.end(), 0.0);
  const double busiest = *std::max_element(served_.begin(), served_.end());
  if (total > 0) record.imbalance = busiest / (total / double(served_.size()));
}

}  // namespace laterna::launch
