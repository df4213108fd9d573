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

template <typename Function>
void StepTotals::for_each_sum(const Function& f) {
  f(loss);
  f(candidates_squares);
  for (auto& layer : assignments_) {
    for (auto& count : layer) f(count);
  }
  for (auto& count : served_) f(count);
  for (auto& rank : ranks_) {
    f(rank.step_seconds);
    f(rank.memory_bytes);
  }
  for (auto& transfer : traffic_) {
    f(transfer.blocks);
    f(transfer.bytes);
    f(transfer.seconds);
  }
}

void StepTotals::sum() {
  if (world_.replica_group().rank() != 0) candidates_squares = 0;  // a shard counts once
  ranks_.resize(served_.size());
  ranks_[static_cast<std::size_t>(world_.rank())] = mine;
  for (std::size_t i = 0; i < traffic_.size(); ++i) {
    const auto& now = exchange_.traffic()[i];
    traffic_[i] = {now.blocks - before_[i].blocks, now.bytes - before_[i].bytes,
                   now.seconds - before_[i].seconds};
  }
  std::vector<double> numbers;
  for_each_sum([&](auto& number) { numbers.push_back(double(number)); });
  const at::Tensor all = at::tensor(numbers, at::kDouble);
  world_.control().all_reduce(all)->wait();
  const double* next = all.const_data_ptr<double>();
  for_each_sum([&]<typename Number>(Number& number) { number = static_cast<Number>(*next++); });
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
