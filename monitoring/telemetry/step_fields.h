// The numbers of a training step, each declared once with its path in log.jsonl, its tag in
// TensorBoard and its Prometheus family. RunLog, EventFile, Metrics and the sum over the ranks all
// follow this table: a new number of a step is a member of StepRecord, a line in for_each_number
// and, where each rank knows only a part of it, a line in for_each_sum.
//
// Paths and tags are templates: {label} stands for the value of a label, and [label] in a path for
// an element of an array, in the order in which the label's values appear.
#pragma once

#include <cstdint>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "monitoring/telemetry/step_record.h"

namespace laterna::monitoring {

/// What a Prometheus family does with the numbers of a step: keep the last one, add them up, or
/// count them by size, with bounds for whole steps or for parts of a step.
enum class Kind { none, gauge, counter, step_histogram, phase_histogram };

/// Where a number of a step goes; null: not there.
struct Field {
  const char* log = nullptr;          // path in the step's line of log.jsonl
  const char* tensorboard = nullptr;  // tag
  const char* metric = nullptr;       // Prometheus family, without the prefix laterna_
  Kind kind = Kind::none;
  const char* help = nullptr;
};

/// Names and values of a number's labels, such as {"layer", "3"}.
using Labels = std::vector<std::pair<std::string, std::string>>;

/// Calls f(field, member of `r`) for the numbers that a step has once and that its line in
/// log.jsonl is read back to.
template <typename Record, typename Function>
void for_each_scalar(Record& r, const Function& f) {
  using enum Kind;
  f(Field{"loss", "train/loss", "train_loss", gauge,
          "Mean squared error of the last step over the global batch, without weights; NaN or Inf "
          "if it was not finite."},
    r.loss);
  f(Field{"grad_norm", "train/grad_norm", "train_grad_norm", gauge,
          "Norm of the last step's gradient before clipping; NaN or Inf if it was not finite."},
    r.grad_norm);
  f(Field{"learning_rate", "train/learning_rate", "train_learning_rate", gauge,
          "Learning rate of the last step."},
    r.learning_rate);
  f(Field{"samples_per_second", "train/samples_per_second"}, r.samples_per_second);
  f(Field{"seconds", "train/seconds", "train_step_duration_seconds", step_histogram,
          "Time of a training step."},
    r.seconds);
  f(Field{"data_wait_seconds", "train/data_wait_seconds", "data_wait_seconds_total", counter,
          "Time that training waited for the loader."},
    r.data_wait_seconds);
  f(Field{"communication_wait_seconds", "train/communication_wait_seconds"},
    r.communication_wait_seconds);
}

/// Calls f(number) for the numbers of which each rank knows a part, int64 or double, in the same
/// order on every rank: at the end of a step they are summed over the ranks.
template <typename Function>
void for_each_sum(StepRecord& r, const Function& f) {
  f(r.loss);
  for (auto& rank : r.ranks) {  // each rank has set its own element; the others are zero
    f(rank.step_seconds);
    f(rank.memory_bytes);
    f(rank.assignments);
  }
  for (auto& transfer : r.exchange) {
    f(transfer.blocks);
    f(transfer.bytes);
    f(transfer.wait_seconds);
  }
  for (auto& layer : r.assignments) {
    for (auto& count : layer) f(count);
  }
}

/// Calls f(field, labels, number) for every number of a step, int64 or double.
template <typename Function>
void for_each_number(const StepRecord& r, const Function& f) {
  using enum Kind;
  const Labels unlabelled;
  const auto number = [](std::int64_t value) { return std::to_string(value); };
  f(Field{"step"}, unlabelled, r.step);
  f(Field{nullptr, nullptr, "train_steps_total", counter,
          "Training steps since the start of this process, including skipped ones."},
    unlabelled, std::int64_t{1});
  f(Field{nullptr, nullptr, "train_samples_total", counter, "Samples of those steps."}, unlabelled,
    r.samples);
  for_each_scalar(r, [&](const Field& field, double value) { f(field, unlabelled, value); });
  f(Field{nullptr, "train/skipped", "nonfinite_steps_total", counter,
          "Steps that were skipped because the loss or the gradient was not finite."},
    unlabelled, std::int64_t{r.skipped});
  for (const auto& phase : r.phases) {
    f(Field{"phases/{phase}", "phases/{phase}", "train_phase_duration_seconds", phase_histogram,
            "Time of a part of a training step on rank 0."},
      {{"phase", phase.name}}, phase.seconds);
  }

  if (!r.ranks.empty()) {
    f(Field{nullptr, nullptr, "ranks", gauge, "Ranks that train."}, unlabelled,
      std::ssize(r.ranks));
    f(Field{"slowest_rank", nullptr, "slowest_rank", gauge,
            "Number of the rank that computed longest in the last step."},
      unlabelled, r.slowest_rank);
    for (const auto& [stat, of] :
         {std::pair("min", &Spread::min), std::pair("median", &Spread::median),
          std::pair("max", &Spread::max)}) {
      const Labels labels = {{"stat", stat}};
      f(Field{"rank_seconds/{stat}", "ranks/step_seconds_{stat}", "rank_step_seconds", gauge,
              "Time that a rank computed in the last step, without waiting: min, median and max."},
        labels, r.rank_seconds.*of);
      f(Field{"rank_memory_bytes/{stat}", "ranks/memory_bytes_{stat}", "rank_memory_bytes", gauge,
              "Resident memory of a rank: min, median and max."},
        labels, r.rank_memory_bytes.*of);
    }
  }
  if (!r.spike_rates.empty()) {  // every rank only now and then: a job may have a thousand
    for (std::size_t i = 0; i < r.ranks.size(); ++i) {
      const Labels labels = {{"rank", number(static_cast<std::int64_t>(i))}};
      f(Field{"all_rank_seconds/[rank]"}, labels, r.ranks[i].step_seconds);
      f(Field{"all_rank_memory_bytes/[rank]"}, labels, r.ranks[i].memory_bytes);
    }
  }

  for (const auto& transfer : r.exchange) {
    const Labels labels = {{"transfer", transfer.name}};
    f(Field{"exchange/{transfer}/blocks"}, labels, transfer.blocks);
    f(Field{"exchange/{transfer}/bytes", "exchange/{transfer}/bytes", "exchange_bytes_total",
            counter,
            "Bytes sent in a transfer of the expert-parallel exchange, summed over the ranks."},
      labels, transfer.bytes);
    f(Field{"exchange/{transfer}/wait_seconds", "exchange/{transfer}/wait_seconds",
            "exchange_seconds_total", counter,
            "Time spent waiting for a transfer of the expert-parallel exchange, mean over the "
            "ranks."},
      labels, transfer.wait_seconds);
  }
  if (!r.exchange.empty()) f(Field{"imbalance", "exchange/imbalance"}, unlabelled, r.imbalance);

  for (std::size_t i = 0; i < r.assignments.size(); ++i) {
    std::int64_t total = 0;
    for (const std::int64_t count : r.assignments[i]) total += count;
    for (std::size_t j = 0; j < r.assignments[i].size(); ++j) {
      const Labels labels = {{"layer", number(r.selecting_layers.at(i))},
                             {"candidate", number(static_cast<std::int64_t>(j))}};
      f(Field{"assignments/[layer]/[candidate]", nullptr, "candidate_assignments_total", counter,
              "Assignments (of a sample at a spiking step) to a candidate substructure."},
        labels, r.assignments[i][j]);
      if (total == 0) continue;
      f(Field{nullptr, "candidates/{layer}/{candidate}"}, labels,
        double(r.assignments[i][j]) / double(total));
    }
  }

  for (const auto& lateral : r.lateral) {
    const Labels labels = {{"layer", number(lateral.layer)}};
    f(Field{"lateral/[layer]/layer"}, labels, lateral.layer);
    f(Field{"lateral/[layer]/gamma", "router/{layer}/gamma", "lateral_gamma", gauge,
            "Strength of a layer's lateral connection."},
      labels, lateral.gamma);
    f(Field{"lateral/[layer]/threshold", "router/{layer}/threshold", "lateral_threshold", gauge,
            "Threshold of a layer's lateral neurons."},
      labels, lateral.threshold);
    f(Field{"lateral/[layer]/offdiagonal_sum", "router/{layer}/offdiagonal_sum",
            "lateral_offdiagonal_sum", gauge,
            "Sum of a layer's lateral aggregation matrix (Lambda) off its diagonal."},
      labels, lateral.offdiagonal_sum);
    f(Field{"lateral/[layer]/trace", "router/{layer}/trace", "lateral_trace", gauge,
            "Trace of a layer's lateral aggregation matrix (Lambda)."},
      labels, lateral.trace);
  }
  for (const auto& rate : r.spike_rates) {
    f(Field{"spike_rates/{layer}/{site}", "spikes/{layer}/{site}", "spike_rate_ratio", gauge,
            "Share of a layer's neurons at a site that fire."},
      {{"layer", number(rate.layer)}, {"site", rate.site}}, rate.ratio);
  }
}

/// Returns a tag with the values of its labels.
inline std::string fill(std::string tag, const Labels& labels) {
  for (const auto& [name, value] : labels) {
    const std::string place = "{" + name + "}";
    if (const auto at = tag.find(place); at != std::string::npos) {
      tag.replace(at, place.size(), value);
    }
  }
  return tag;
}

}  // namespace laterna::monitoring
