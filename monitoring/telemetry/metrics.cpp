// The only user of prometheus-cpp. A child of a family is looked up each time it is set: this takes
// less than a microsecond, and values that are not known yet stay absent.
#include "monitoring/telemetry/metrics.h"

#include <fmt/format.h>
#include <prometheus/counter.h>
#include <prometheus/exposer.h>
#include <prometheus/gauge.h>
#include <prometheus/histogram.h>
#include <prometheus/registry.h>

#include <nlohmann/json.hpp>
#include <stdexcept>
#include <thread>
#include <utility>

#include "data/files/durable_file.h"
#include "data/host.h"

namespace laterna::monitoring {
namespace {

using prometheus::Counter;
using prometheus::Family;
using prometheus::Gauge;
using prometheus::Histogram;
using prometheus::Registry;
using Bounds = Histogram::BucketBoundaries;

// Bucket bounds in seconds. Steps of a run take similar times, so coarse bounds would hide changes.
const Bounds kStepBounds = {0.001, 0.0015, 0.002, 0.003, 0.005, 0.0075, 0.01, 0.015, 0.02,
                            0.03,  0.05,   0.075, 0.1,   0.15,  0.2,    0.3,  0.5,   0.75,
                            1,     1.5,    2,     3,     5,     7.5,    10,   15,    20,
                            30,    50,     75,    100,   150,   200,    300,  600};
const Bounds kPhaseBounds = {0.0001, 0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01,
                             0.02,   0.05,   0.1,    0.2,   0.5,   1,     2,
                             5,      10,     20,     50,    100,   200,   600};
const Bounds kCheckpointBounds = {0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5,  1,
                                  2,     5,     10,    20,   50,   100,  200, 500, 1000, 3600};

Family<Counter>& counter(Registry& registry, const char* name, const char* help) {
  return prometheus::BuildCounter().Name(name).Help(help).Register(registry);
}
Family<Gauge>& gauge(Registry& registry, const char* name, const char* help) {
  return prometheus::BuildGauge().Name(name).Help(help).Register(registry);
}
Family<Histogram>& histogram(Registry& registry, const char* name, const char* help) {
  return prometheus::BuildHistogram().Name(name).Help(help).Register(registry);
}

constexpr char kOffdiagonalSum[] = "laterna_lateral_offdiagonal_sum";

/// Serves kOffdiagonalSum without a type. Its name ends in _sum because it is a sum of matrix
/// entries, but among typed families Prometheus' conventions allow such names only for histograms.
class Families : public Registry {
 public:
  std::vector<prometheus::MetricFamily> Collect() const override {
    auto families = Registry::Collect();
    for (auto& family : families) {
      if (family.name != kOffdiagonalSum) continue;
      family.type = prometheus::MetricType::Untyped;
      for (auto& metric : family.metric) metric.untyped.value = metric.gauge.value;
    }
    return families;
  }
};

std::unique_ptr<prometheus::Exposer> serve(const std::string& address, int port) {
  const std::string where = fmt::format("{}:{}", address, port);
  try {
    return std::make_unique<prometheus::Exposer>(where);
  } catch (const std::exception&) {  // its message does not state the reason
    throw std::runtime_error(fmt::format(
        "{}: cannot serve metrics: the port is in use or not allowed, or the address is not an "
        "IPv4 address of this host; set metrics.port to a free port (0: no metrics) or change "
        "metrics.address",
        where));
  }
}

}  // namespace

struct Metrics::Served {
  std::shared_ptr<Registry> registry = std::make_shared<Families>();

  Family<Gauge>& build_info =
      gauge(*registry, "laterna_build_info",
            "Always 1; the labels are the versions of Laterna and its libraries.");
  Counter& train_steps =
      counter(*registry, "laterna_train_steps_total",
              "Training steps since the start of this process, including skipped ones.")
          .Add({});
  Counter& train_samples = counter(*registry, "laterna_train_samples_total",
                                   "Training samples since the start of this process.")
                               .Add({});
  Family<Gauge>& train_loss = gauge(
      *registry, "laterna_train_loss",
      "Mean squared error of the last step over the global batch, all samples weighted equally; "
      "NaN or Inf if it was not finite.");
  Family<Gauge>& train_grad_norm =
      gauge(*registry, "laterna_train_grad_norm",
            "Norm of the last step's gradient before clipping; NaN or Inf if it was not finite.");
  Family<Gauge>& train_learning_rate =
      gauge(*registry, "laterna_train_learning_rate", "Learning rate of the last step.");
  Histogram& train_step_duration =
      histogram(*registry, "laterna_train_step_duration_seconds", "Duration of a training step.")
          .Add({}, kStepBounds);
  Family<Histogram>& train_phase_duration =
      histogram(*registry, "laterna_train_phase_duration_seconds",
                "Duration of a phase of a training step on rank 0.");
  Gauge& train_last_step_timestamp =
      gauge(*registry, "laterna_train_last_step_timestamp_seconds",
            "Unix time at the end of the last step; 0 before the first step of this process.")
          .Add({});
  Counter& data_wait = counter(*registry, "laterna_data_wait_seconds_total",
                               "Time that training waited for the data loader.")
                           .Add({});
  Counter& nonfinite_steps =
      counter(*registry, "laterna_nonfinite_steps_total",
              "Steps skipped because the loss or the gradient was not finite.")
          .Add({});
  Family<Counter>& exchange_bytes =
      counter(*registry, "laterna_exchange_bytes_total",
              "Bytes sent in a transfer of the expert-parallel exchange, summed over the ranks.");
  Family<Counter>& exchange_seconds = counter(
      *registry, "laterna_exchange_seconds_total",
      "Time spent waiting for a transfer of the expert-parallel exchange, mean over the ranks.");
  Family<Counter>& candidate_assignments =
      counter(*registry, "laterna_candidate_assignments_total",
              "Assignments (of one sample at one spiking step) to a candidate substructure.");
  Family<Gauge>& spike_rate = gauge(*registry, "laterna_spike_rate_ratio",
                                    "Share of a layer's neurons at a site that fire.");
  Family<Gauge>& lateral_gamma =
      gauge(*registry, "laterna_lateral_gamma", "Strength of a layer's lateral connection.");
  Family<Gauge>& lateral_threshold =
      gauge(*registry, "laterna_lateral_threshold", "Threshold of a layer's lateral neurons.");
  Family<Gauge>& lateral_offdiagonal_sum =
      gauge(*registry, kOffdiagonalSum,
            "Sum of a layer's lateral aggregation matrix (Lambda) off its diagonal.");
  Family<Gauge>& lateral_trace = gauge(*registry, "laterna_lateral_trace",
                                       "Trace of a layer's lateral aggregation matrix (Lambda).");
  Family<Gauge>& ranks = gauge(*registry, "laterna_ranks", "Number of ranks of the training job.");
  Family<Gauge>& rank_step =
      gauge(*registry, "laterna_rank_step_seconds",
            "Time that a rank worked in the last step, without waiting for others.");
  Family<Gauge>& rank_memory =
      gauge(*registry, "laterna_rank_memory_bytes", "Resident memory of a rank.");
  Family<Histogram>& checkpoint_duration = histogram(
      *registry, "laterna_checkpoint_duration_seconds",
      "Duration of a phase of saving a checkpoint: snapshot (training pauses), write (in the "
      "background, the slowest writer) and commit.");
  Histogram& snapshot = checkpoint_duration.Add({{"phase", "snapshot"}}, kCheckpointBounds);
  Histogram& write = checkpoint_duration.Add({{"phase", "write"}}, kCheckpointBounds);
  Histogram& commit = checkpoint_duration.Add({{"phase", "commit"}}, kCheckpointBounds);
  Family<Gauge>& checkpoint_bytes =
      gauge(*registry, "laterna_checkpoint_bytes", "Size of the last checkpoint.");
  Gauge& checkpoint_last_success_timestamp =
      gauge(*registry, "laterna_checkpoint_last_success_timestamp_seconds",
            "Unix time at which the last checkpoint was complete; 0 before the first checkpoint of "
            "this process.")
          .Add({});
  Family<Gauge>& fid =
      gauge(*registry, "laterna_fid",
            "Frechet distance (FID) in the last evaluation of the averaged weights.");
  Family<Gauge>& fid_interval = gauge(*registry, "laterna_fid_interval",
                                      "Bounds of the 95% bootstrap interval of the last FID.");
  Counter& watchdog_timeouts =
      counter(
          *registry, "laterna_watchdog_timeouts_total",
          "Times that the watchdog ended the run because a rank hung, including earlier starts of "
          "the run.")
          .Add({});

  std::unique_ptr<prometheus::Exposer> exposer;  // holds only a weak pointer to the registry
};

Metrics::Metrics(const std::string& address, int port, const BuildFacts& build)
    : served_(std::make_unique<Served>()) {
  served_->build_info
      .Add({{"version", build.version},
            {"torch", build.torch},
            {"mpi", build.mpi},
            {"nccl", build.nccl}})
      .Set(1);
  served_->exposer = serve(address, port);
  served_->exposer->RegisterCollectable(served_->registry);
}

// The exposer's listening thread checks every two seconds whether to stop, too long to wait at the
// end of a short training run.
Metrics::~Metrics() {
  std::thread([ending = std::move(served_->exposer)]() mutable { ending.reset(); }).detach();
}

int Metrics::port() const { return served_->exposer->GetListeningPorts().at(0); }

void Metrics::step(const StepRecord& record) {
  Served& s = *served_;
  s.train_steps.Increment();
  s.train_samples.Increment(double(record.samples));
  if (record.skipped) s.nonfinite_steps.Increment();
  s.train_loss.Add({}).Set(record.loss);
  s.train_grad_norm.Add({}).Set(record.grad_norm);
  s.train_learning_rate.Add({}).Set(record.learning_rate);
  s.train_step_duration.Observe(record.seconds);
  s.data_wait.Increment(record.data_wait_seconds);
  for (const auto& phase : record.phases) {
    s.train_phase_duration.Add({{"phase", phase.name}}, kPhaseBounds).Observe(phase.seconds);
  }
  if (!record.ranks.empty()) s.ranks.Add({}).Set(double(record.ranks.size()));
  for (std::size_t rank = 0; rank < record.ranks.size(); ++rank) {
    const prometheus::Labels labels = {{"rank", std::to_string(rank)}};
    s.rank_step.Add(labels).Set(record.ranks[rank].step_seconds);
    s.rank_memory.Add(labels).Set(double(record.ranks[rank].memory_bytes));
  }
  for (const auto& transfer : record.exchange) {
    s.exchange_bytes.Add({{"transfer", transfer.name}}).Increment(double(transfer.bytes));
    s.exchange_seconds.Add({{"transfer", transfer.name}}).Increment(transfer.wait_seconds);
  }
  for (std::size_t i = 0; i < record.selecting_layers.size(); ++i) {
    const std::string layer = std::to_string(record.selecting_layers[i]);
    const auto& assignments = record.assignments.at(i);
    for (std::size_t candidate = 0; candidate < assignments.size(); ++candidate) {
      s.candidate_assignments.Add({{"layer", layer}, {"candidate", std::to_string(candidate)}})
          .Increment(double(assignments[candidate]));
    }
  }
  for (const auto& lateral : record.lateral) {
    const prometheus::Labels labels = {{"layer", std::to_string(lateral.layer)}};
    s.lateral_gamma.Add(labels).Set(lateral.gamma);
    s.lateral_threshold.Add(labels).Set(lateral.threshold);
    s.lateral_offdiagonal_sum.Add(labels).Set(lateral.offdiagonal_sum);
    s.lateral_trace.Add(labels).Set(lateral.trace);
  }
  for (const auto& rate : record.spike_rates) {
    s.spike_rate.Add({{"layer", std::to_string(rate.layer)}, {"site", rate.site}}).Set(rate.ratio);
  }
  s.train_last_step_timestamp.Set(data::unix_time());
}

void Metrics::evaluation(const EvaluationRecord& record) {
  served_->fid.Add({}).Set(record.fid);
  served_->fid_interval.Add({{"bound", "lower"}}).Set(record.fid_low);
  served_->fid_interval.Add({{"bound", "upper"}}).Set(record.fid_high);
}

void Metrics::checkpoint(const CheckpointRecord& record) {
  served_->snapshot.Observe(record.snapshot_seconds);
  served_->write.Observe(record.write_seconds);
  served_->commit.Observe(record.commit_seconds);
  served_->checkpoint_bytes.Add({}).Set(double(record.bytes));
  served_->checkpoint_last_success_timestamp.Set(data::unix_time());
}

void Metrics::watchdog_timeouts(std::int64_t total) {
  served_->watchdog_timeouts.Increment(double(total) - served_->watchdog_timeouts.Value());
}

void write_target_file(const std::filesystem::path& path, const std::string& address, int port,
                       const std::filesystem::path& run) {
  const std::string host = address == "0.0.0.0" ? data::host_name() : address;
  const auto targets = nlohmann::json::array({fmt::format("{}:{}", host, port)});
  const nlohmann::json labels = {
      {"run", std::filesystem::absolute(run).lexically_normal().string()}};
  const auto groups = nlohmann::json::array({{{"targets", targets}, {"labels", labels}}});
  data::write_file_durably(path, groups.dump(2) + "\n");
}

void withdraw_target_file(const std::filesystem::path& path) {
  // Emptied, not removed: Prometheus keeps the targets of a file that it can no longer read.
  data::write_file_durably(path, "[]\n");
}

}  // namespace laterna::monitoring
