#include "launch/training/step_totals.h"

#include <ATen/ATen.h>

#include <algorithm>

#include "monitoring/telemetry/step_fields.h"

namespace laterna::launch {
namespace {

/// Returns the assignments that the busiest rank computed over those of the mean rank.
double imbalance(const std::vector<monitoring::RankFacts>& ranks) {
  double total = 0, busiest = 0;
  for (const auto& rank : ranks) {
    total += double(rank.assignments);
    busiest = std::max(busiest, double(rank.assignments));
  }
  return total > 0 ? busiest / (total / double(ranks.size())) : 1;
}

template <typename Number>
monitoring::Spread spread(const std::vector<monitoring::RankFacts>& ranks,
                          Number monitoring::RankFacts::*of) {
  std::vector<double> values;
  for (const auto& rank : ranks) values.push_back(double(rank.*of));
  std::sort(values.begin(), values.end());
  return {values.front(), values[(values.size() - 1) / 2], values.back()};
}

}  // namespace

StepTotals::StepTotals(const Config& config, dist::World& world, const dist::Exchange& exchange)
    : world_(world), exchange_(exchange), before_(exchange.traffic()) {
  record.ranks.resize(static_cast<std::size_t>(world.size()));
  for (std::int64_t layer = 0; layer < config.model.depth; ++layer) {
    if (!config.model.selects(layer)) continue;
    record.assignments.emplace_back(config.model.candidates);
    record.selecting_layers.push_back(layer);
  }
  if (exchange.group().size() == 1) return;
  for (const char* name : dist::kTransferNames) record.exchange.push_back({name});
}

monitoring::RankFacts& StepTotals::mine() {
  return record.ranks[static_cast<std::size_t>(world_.rank())];
}

void StepTotals::add(const model::Routing& routing) {
  for (std::size_t layer = 0; layer < routing.size(); ++layer) {
    const at::Tensor counts = routing[layer].mask.flatten(0, 1).sum(0);  // [N] int64
    auto& assignments = record.assignments[layer];
    for (std::size_t n = 0; n < assignments.size(); ++n) {
      assignments[n] += counts.const_data_ptr<std::int64_t>()[n];
    }
  }
}

void StepTotals::add(const dist::MicroBatchPlan& plan) {
  for (const auto& layer : plan) {
    mine().assignments += std::count(layer.local.begin(), layer.local.end(), 1) +
                          std::count(layer.remote.begin(), layer.remote.end(), 1);
  }
}

void StepTotals::sum() {
  if (world_.replica_group().rank() != 0) candidates_squares = 0;  // a shard counts once
  for (std::size_t i = 0; i < record.exchange.size(); ++i) {
    const auto& now = exchange_.traffic()[i];
    auto& transfer = record.exchange[i];
    transfer.blocks = now.blocks - before_[i].blocks;
    transfer.bytes = now.bytes - before_[i].bytes;
    transfer.wait_seconds = (now.seconds - before_[i].seconds) / double(world_.size());  // mean
  }
  std::vector<double> numbers{candidates_squares};
  monitoring::for_each_sum(record, [&](auto& number) { numbers.push_back(double(number)); });
  const at::Tensor all = at::tensor(numbers, at::kDouble);
  world_.control().all_reduce(all)->wait();
  const double* next = all.const_data_ptr<double>();
  candidates_squares = *next++;
  monitoring::for_each_sum(
      record, [&]<typename Number>(Number& number) { number = static_cast<Number>(*next++); });
  record.imbalance = imbalance(record.ranks);
  record.rank_seconds = spread(record.ranks, &monitoring::RankFacts::step_seconds);
  record.rank_memory_bytes = spread(record.ranks, &monitoring::RankFacts::memory_bytes);
  const auto slowest = std::max_element(
      record.ranks.begin(), record.ranks.end(),
      [](const auto& a, const auto& b) { return a.step_seconds < b.step_seconds; });
  record.slowest_rank = slowest - record.ranks.begin();
}

}  // namespace laterna::launch
