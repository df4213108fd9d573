// Compares the metrics served over HTTP with the records given to Metrics.
#include "monitoring/telemetry/metrics.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <chrono>
#include <map>
#include <nlohmann/json.hpp>
#include <sstream>

#include "data/error.h"
#include "tests/data/scratch_folder.h"
#include "tests/monitoring/example_records.h"

namespace laterna::monitoring {
namespace {

using data::expect_error;

const BuildFacts kBuild = {.version = "1.2", .torch = "2.11", .mpi = "Open MPI 4", .nccl = "none"};

/// Returns the whole response to a GET of /metrics at 127.0.0.1.
std::string fetch(int port) {
  const int connection = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  sockaddr_in server{};
  server.sin_family = AF_INET;
  server.sin_port = htons(static_cast<std::uint16_t>(port));
  server.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  EXPECT_EQ(connect(connection, reinterpret_cast<sockaddr*>(&server), sizeof(server)), 0);
  const std::string request = "GET /metrics HTTP/1.0\r\n\r\n";
  EXPECT_EQ(send(connection, request.data(), request.size(), 0), ssize_t(request.size()));
  std::string answer(1 << 20, '\0');
  std::size_t size = 0;
  for (ssize_t got = 1; got > 0; size += std::size_t(std::max<ssize_t>(got, 0))) {
    got = recv(connection, answer.data() + size, answer.size() - size, 0);
  }
  close(connection);
  return answer.substr(0, size);
}

struct Served {
  std::map<std::string, std::string> types;  // by family
  std::map<std::string, double> samples;     // by name{labels}

  explicit Served(const Metrics& metrics) {
    const std::string answer = fetch(metrics.port());
    EXPECT_EQ(answer.substr(0, 15), "HTTP/1.1 200 OK");
    std::istringstream lines(answer.substr(answer.find("\r\n\r\n") + 4));
    for (std::string line; std::getline(lines, line);) {
      std::istringstream words(line);
      std::string hash, word, name, type;
      if (line.rfind("# TYPE ", 0) == 0) {
        words >> hash >> word >> name >> type;
        types[name] = type;
      } else if (line.front() != '#') {
        const auto space = line.rfind(' ');
        samples[line.substr(0, space)] = std::stod(line.substr(space + 1));
      }
    }
  }
  double operator[](const std::string& sample) const {
    EXPECT_TRUE(samples.contains(sample)) << sample;
    return samples.contains(sample) ? samples.at(sample) : -1;
  }
};

double now() {
  return std::chrono::duration<double>(std::chrono::system_clock::now().time_since_epoch()).count();
}

TEST(Metrics, FamiliesHaveTheExpectedTypes) {
  Metrics metrics("127.0.0.1", 0, kBuild);
  metrics.step(example_step());
  metrics.checkpoint(example_checkpoint());
  metrics.evaluation(example_evaluation());
  std::map<std::string, std::string> ours;
  for (const auto& [name, type] : Served(metrics).types) {
    if (name.rfind("laterna_", 0) == 0) ours[name.substr(8)] = type;
  }
  const std::map<std::string, std::string> promised = {
      {"build_info", "gauge"},
      {"train_steps_total", "counter"},
      {"train_samples_total", "counter"},
      {"train_loss", "gauge"},
      {"train_grad_norm", "gauge"},
      {"train_learning_rate", "gauge"},
      {"train_step_duration_seconds", "histogram"},
      {"train_phase_duration_seconds", "histogram"},
      {"train_last_step_timestamp_seconds", "gauge"},
      {"data_wait_seconds_total", "counter"},
      {"nonfinite_steps_total", "counter"},
      {"exchange_bytes_total", "counter"},
      {"exchange_seconds_total", "counter"},
      {"candidate_assignments_total", "counter"},
      {"spike_rate_ratio", "gauge"},
      {"lateral_gamma", "gauge"},
      {"lateral_threshold", "gauge"},
      {"lateral_offdiagonal_sum", "untyped"},
      {"lateral_trace", "gauge"},
      {"ranks", "gauge"},
      {"rank_step_seconds", "gauge"},
      {"rank_memory_bytes", "gauge"},
      {"slowest_rank", "gauge"},
      {"checkpoint_duration_seconds", "histogram"},
      {"checkpoint_bytes", "gauge"},
      {"checkpoint_last_success_timestamp_seconds", "gauge"},
      {"fid", "gauge"},
      {"fid_interval", "gauge"},
      {"watchdog_timeouts_total", "counter"}};
  for (const auto& [name, type] : promised) EXPECT_EQ(ours[name], type) << name;
}

TEST(Metrics, StepsAccumulate) {
  const double begin = now();
  Metrics metrics("127.0.0.1", 0, kBuild);
  for (int step = 0; step < 4; ++step) metrics.step(example_step());
  const Served served(metrics);
  const std::map<std::string, double> expected = {
      {R"(build_info{mpi="Open MPI 4",nccl="none",torch="2.11",version="1.2"})", 1},
      {"train_steps_total", 4},
      {"train_samples_total", 48},
      {"train_loss", 0.25},
      {"train_grad_norm", 1.5},
      {"train_learning_rate", 1e-4},
      {"train_step_duration_seconds_count", 4},
      {"train_step_duration_seconds_sum", 2},
      {R"(train_step_duration_seconds_bucket{le="0.3"})", 0},
      {R"(train_step_duration_seconds_bucket{le="0.5"})", 4},
      {R"(train_step_duration_seconds_bucket{le="600"})", 4},
      {R"(train_phase_duration_seconds_count{phase="backward"})", 4},
      {R"(train_phase_duration_seconds_sum{phase="data"})", 0.5},
      {"data_wait_seconds_total", 0.5},
      {"nonfinite_steps_total", 0},
      {R"(exchange_bytes_total{transfer="dispatch"})", 16384},
      {R"(exchange_seconds_total{transfer="combine"})", 0.125},
      {R"(candidate_assignments_total{candidate="1",layer="1"})", 80},
      {R"(candidate_assignments_total{candidate="2",layer="2"})", 64},
      {R"(spike_rate_ratio{layer="2",site="attention"})", 0.0625},
      {R"(lateral_gamma{layer="1"})", 0.75},
      {R"(lateral_threshold{layer="1"})", 0.5},
      {R"(lateral_offdiagonal_sum{layer="2"})", 6},
      {R"(lateral_trace{layer="2"})", -0.25},
      {"ranks", 3},
      {R"(rank_step_seconds{stat="max"})", 0.3125},
      {R"(rank_memory_bytes{stat="median"})", 2000},
      {"slowest_rank", 2},
      {"watchdog_timeouts_total", 0}};
  for (const auto& [sample, value] : expected) {
    EXPECT_DOUBLE_EQ(served["laterna_" + sample], value) << sample;
  }
  EXPECT_GE(served["laterna_train_last_step_timestamp_seconds"], begin);
  EXPECT_LE(served["laterna_train_last_step_timestamp_seconds"], now());
}

TEST(Metrics, ShowCheckpointsEvaluationsAndTimeouts) {
  const double begin = now();
  Metrics metrics("127.0.0.1", 0, kBuild);
  EXPECT_EQ(Served(metrics)["laterna_checkpoint_last_success_timestamp_seconds"], 0);
  metrics.checkpoint(example_checkpoint());
  metrics.evaluation(example_evaluation());
  metrics.watchdog_timeouts(2);
  metrics.watchdog_timeouts(2);
  const Served served(metrics);
  EXPECT_GE(served["laterna_checkpoint_last_success_timestamp_seconds"], begin);
  EXPECT_LE(served["laterna_checkpoint_last_success_timestamp_seconds"], now());
  EXPECT_EQ(served["laterna_checkpoint_bytes"], 1 << 20);
  EXPECT_EQ(served[R"(laterna_checkpoint_duration_seconds_sum{phase="write"})"], 0.75);
  EXPECT_EQ(served[R"(laterna_checkpoint_duration_seconds_count{phase="commit"})"], 1);
  EXPECT_EQ(served[R"(laterna_checkpoint_duration_seconds_bucket{phase="snapshot",le="0.005"})"],
            1);
  EXPECT_EQ(served["laterna_fid"], 21.5);
  EXPECT_EQ(served[R"(laterna_fid_interval{bound="lower"})"], 20.75);
  EXPECT_EQ(served[R"(laterna_fid_interval{bound="upper"})"], 22.25);
  EXPECT_EQ(served["laterna_watchdog_timeouts_total"], 2);
}

TEST(Metrics, UnknownValuesAreAbsent) {
  const Metrics metrics("127.0.0.1", 0, kBuild);
  const Served served(metrics);
  for (const char* gauge : {"laterna_train_loss", "laterna_fid", "laterna_checkpoint_bytes"}) {
    EXPECT_FALSE(served.samples.contains(gauge)) << gauge;
  }
  EXPECT_EQ(served["laterna_train_steps_total"], 0);
  EXPECT_EQ(served["laterna_train_last_step_timestamp_seconds"], 0);
}

TEST(Metrics, SkippedStepsAreShownAndCounted) {
  Metrics metrics("127.0.0.1", 0, kBuild);
  metrics.step(example_step());
  metrics.step(example_skipped_step());
  EXPECT_TRUE(std::isnan(Served(metrics)["laterna_train_loss"]));
  EXPECT_TRUE(std::isinf(Served(metrics)["laterna_train_grad_norm"]));
  metrics.step(example_step());
  const Served served(metrics);
  EXPECT_EQ(served["laterna_train_loss"], 0.25);
  EXPECT_EQ(served["laterna_nonfinite_steps_total"], 1);
  EXPECT_EQ(served["laterna_train_steps_total"], 3);
}

TEST(Metrics, ErrorNamesABusyPort) {
  const Metrics first("127.0.0.1", 0, kBuild);
  const int port = first.port();
  expect_error<std::runtime_error>(
      [&] { Metrics("127.0.0.1", port, kBuild); },
      {"127.0.0.1:" + std::to_string(port), "metrics.port", "0: no metrics", "metrics.address"});
  EXPECT_EQ(Served(first)["laterna_train_steps_total"], 0);  // the first server still works
}

TEST(Metrics, ErrorNamesABadAddress) {
  for (const char* address : {"203.0.113.1", "300.1.1.1", "no such host", ""}) {
    expect_error<std::runtime_error>([&] { Metrics(address, 9464, kBuild); },
                                     {std::string(address) + ":9464", "metrics.address"});
  }
}

TEST(Metrics, AcceptIpAddressesAndHostNames) {
  for (const char* address : {"0.0.0.0", "localhost", "127.0.0.1"}) {
    EXPECT_GT(Metrics(address, 0, kBuild).port(), 0) << address;
  }
}

TEST(Metrics, DestructorReturnsAtOnce) {
  auto metrics = std::make_unique<Metrics>("127.0.0.1", 0, kBuild);
  EXPECT_EQ(Served(*metrics)["laterna_train_steps_total"], 0);
  const double begin = now();
  metrics.reset();
  EXPECT_LT(now() - begin, 1);
}

TEST(Metrics, TargetFileNamesTheJobForPrometheus) {
  const data::ScratchFolder scratch;
  const auto path = scratch / "metrics-target.json";
  const auto read = [&] { return nlohmann::json::parse(data::get(path)); };
  write_target_file(path, "10.1.2.3", 9464, scratch.path());
  EXPECT_EQ(read(), nlohmann::json::parse(R"([{"targets": ["10.1.2.3:9464"], "labels": {"run": ")" +
                                          scratch.path().string() + R"("}}])"));
  write_target_file(path, "0.0.0.0", 9465, "runs/mnist/");
  std::string host(256, '\0');
  gethostname(host.data(), host.size());
  EXPECT_EQ(read()[0]["targets"][0], host.substr(0, host.find('\0')) + ":9465");
  EXPECT_EQ(read()[0]["labels"]["run"], (std::filesystem::current_path() / "runs/mnist/").string());
  withdraw_target_file(path);
  EXPECT_EQ(read(), nlohmann::json::array());
  expect_error<data::WriteError>(
      [&] { write_target_file(scratch / "none/target.json", "0.0.0.0", 1, "/run"); },
      {"none/target.json"});
}

}  // namespace
}  // namespace laterna::monitoring
