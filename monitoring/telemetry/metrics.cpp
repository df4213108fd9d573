// The only user of prometheus-cpp. Each update looks up its time series (a label set of a
// Prometheus family) anew, so that values that are not known yet stay absent.
#include "monitoring/telemetry/metrics.h"

#include <fmt/format.h>
#include <netdb.h>
#include <prometheus/counter.h>
#include <prometheus/exposer.h>
#include <prometheus/gauge.h>
#include <prometheus/histogram.h>
#include <prometheus/registry.h>
#include <sys/socket.h>
#include <unistd.h>

#include <chrono>
#include <future>
#include <map>
#include <mutex>
#include <nlohmann/json.hpp>
#include <optional>
#include <stdexcept>
#include <string_view>
#include <utility>

#include "data/files/durable_file.h"
#include "data/host.h"
#include "monitoring/telemetry/step_fields.h"

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

/// Connects to address:port over TCP and hangs up.
void knock(const std::string& address, int port) {
  addrinfo hints{};
  hints.ai_flags = AI_NUMERICSERV;
  hints.ai_family = AF_INET;
  hints.ai_socktype = SOCK_STREAM;
  addrinfo* found = nullptr;
  if (getaddrinfo(address.c_str(), std::to_string(port).c_str(), &hints, &found) != 0) return;
  const int connection = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
  if (connection >= 0) {
    connect(connection, found->ai_addr, found->ai_addrlen);
    close(connection);
  }
  freeaddrinfo(found);
}

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
  /// Registers what is there before the first step: the families without labels that count.
  Served() {
    for_each_number(StepRecord{}, [this](const Field& field, const Labels& labels, auto) {
      if (field.metric && field.kind != Kind::gauge) set(field, labels, {});
    });
  }

  /// Updates a family, which is registered when it is first set. No value: only makes a counter or
  /// histogram exist.
  void set(const Field& field, const Labels& labels, std::optional<double> value) {
    const prometheus::Labels all(labels.begin(), labels.end());
    const std::lock_guard lock(mutex);
    switch (field.kind) {
      case Kind::none:
        break;
      case Kind::gauge:
        family(gauges, field, gauge).Add(all).Set(value.value());
        break;
      case Kind::counter:
        family(counters, field, counter).Add(all).Increment(value.value_or(0));
        break;
      case Kind::step_histogram:
      case Kind::phase_histogram: {
        const auto& bounds = field.kind == Kind::step_histogram ? kStepBounds : kPhaseBounds;
        auto& child = family(histograms, field, histogram).Add(all, bounds);
        if (value) child.Observe(*value);
      }
    }
  }

  std::shared_ptr<Registry> registry = std::make_shared<Families>();

  Family<Gauge>& build_info =
      gauge(*registry, "laterna_build_info",
            "Always 1; the labels are the versions of Laterna and its libraries.");
  Gauge& train_last_step_timestamp =
      gauge(*registry, "laterna_train_last_step_timestamp_seconds",
            "Unix time at the end of the last step; 0 before the first step of this process.")
          .Add({});
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

  template <typename Metric>
  using ByName = std::map<std::string_view, Family<Metric>*>;
  std::mutex mutex;  // of the families that steps fill
  ByName<Counter> counters;
  ByName<Gauge> gauges;
  ByName<Histogram> histograms;

  std::unique_ptr<prometheus::Exposer> exposer;  // holds only a weak pointer to the registry
  std::string address;

 private:
  template <typename Metric, typename Make>
  Family<Metric>& family(ByName<Metric>& known, const Field& field, const Make& make) {
    Family<Metric>*& found = known[field.metric];
    if (!found) {
      found = &make(*registry, (std::string("laterna_") + field.metric).c_str(), field.help);
    }
    return *found;
  }
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
  served_->address = address;
  served_->exposer->RegisterCollectable(served_->registry);
}

// The exposer's listening thread looks every two seconds whether it is to stop, too long to wait at
// the end of a short training run; but it also looks when somebody connects.
Metrics::~Metrics() {
  const int port = this->port();
  auto ended = std::async(std::launch::async, [this] { served_->exposer.reset(); });
  while (ended.wait_for(std::chrono::milliseconds(20)) != std::future_status::ready) {
    knock(served_->address, port);
  }
}

int Metrics::port() const { return served_->exposer->GetListeningPorts().at(0); }

void Metrics::step(const StepRecord& record) {
  for_each_number(record, [&](const Field& field, const Labels& labels, auto value) {
    if (field.metric) served_->set(field, labels, double(value));
  });
  served_->train_last_step_timestamp.Set(data::unix_time());
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
  const std::lock_guard lock(served_->mutex);
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
