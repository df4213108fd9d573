// `laterna bench fid`: how long the image quality figures (FID, KID, precision, recall) take to
// compute, and their values on random features, which --output writes for other programs
// (tests/reference/fid.py compares).
#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <fmt/format.h>

#include <chrono>
#include <filesystem>
#include <nlohmann/json.hpp>

#include "data/host.h"
#include "data/philox.h"
#include "launch/bench/bench.h"
#include "monitoring/quality/frechet_errors.h"
#include "monitoring/quality/kernel_distance.h"
#include "monitoring/quality/manifold.h"
#include "monitoring/quality/statistics_file.h"

namespace laterna::launch {
namespace {

using nlohmann::json;
using namespace monitoring;

/// Returns random features, float32 [n,d], with correlations through a few common causes and
/// falling variances like those of an image network. With `generated`, others with less variance
/// and a slightly shifted mean.
at::Tensor random_features(std::int64_t n, std::int64_t d, bool generated) {
  const std::int64_t causes = std::min<std::int64_t>(d, 16);
  const auto normal = [](std::int64_t rows, std::int64_t columns, std::uint32_t index) {
    at::Tensor x = at::empty({rows, columns}, at::kFloat);
    data::fill_normal(x.data_ptr<float>(), rows * columns, 0, data::Stream::noise, 0, index);
    return x;
  };
  const at::Tensor weights = normal(causes, d, 0);
  at::Tensor x = normal(n, causes, generated ? 1 : 2).mm(weights) * 0.25;
  x += normal(n, d, generated ? 3 : 4) * at::linspace(1, 0.05, d, at::kFloat);
  return generated ? x * 0.9 + 0.02 : x;
}

/// Times each computation and prints its name and seconds.
class Stopwatch {
 public:
  template <typename Work>
  auto time(const char* what, const Work& work) {
    const auto began = std::chrono::steady_clock::now();
    const auto result = work();
    const double seconds = data::seconds_since(began);
    seconds_[what] = seconds;
    fmt::print("{:<28}{:>9.3f} s\n", what, seconds);
    std::fflush(stdout);
    return result;
  }
  const json& seconds() const { return seconds_; }

 private:
  json seconds_;
};

void write_features(const std::filesystem::path& folder, const char* name,
                    const Statistics& statistics, const at::Tensor& features) {
  std::filesystem::create_directories(folder);
  StatisticsFile file{statistics, {}, features};
  file.facts.split = name;
  write_statistics(folder / fmt::format("{}.npz", name), file);
}

}  // namespace

int bench_fid(std::int64_t samples, std::int64_t features, const std::string& output) {
  const at::Tensor generated = random_features(samples, features, true);
  const at::Tensor reference = random_features(samples, features, false);
  Stopwatch watch;
  const auto of_generated = watch.time("statistics", [&] { return statistics_of(generated); });
  const Statistics of_reference = statistics_of(reference);
  const auto prepared = watch.time("reference", [&] { return FrechetReference(of_reference); });
  const double fid = watch.time("distance", [&] { return prepared.distance(of_generated); });
  const auto resampler =
      watch.time("resampler", [&] { return FrechetResampler(prepared, generated); });
  const std::int64_t replicas = resampler.affordable_replicas();
  const auto interval = watch.time("interval", [&] { return resampler.interval(replicas); });
  const double infinity = watch.time("infinity", [&] { return resampler.infinity(); });
  const auto kernel = watch.time("kernel", [&] { return kernel_distance(generated, reference); });
  const auto manifold =
      watch.time("precision_recall", [&] { return precision_recall(generated, reference); });
  if (!output.empty()) {
    write_features(output, "generated", of_generated, generated);
    write_features(output, "reference", of_reference, reference);
  }
  const json line = {{"benchmark", "fid"},
                     {"program", "laterna"},
                     {"samples", samples},
                     {"features", features},
                     {"threads", at::get_num_threads()},
                     {"replicas", replicas},
                     {"seconds", watch.seconds()},
                     {"fid", fid},
                     {"fid_low", interval.low},
                     {"fid_high", interval.high},
                     {"fid_infinity", infinity},
                     {"kid", kernel.mean},
                     {"kid_deviation", kernel.deviation},
                     {"precision", manifold.precision},
                     {"recall", manifold.recall}};
  fmt::print("{}\n", line.dump());
  return 0;
}

}  // namespace laterna::launch
