// What the benchmarks of `laterna bench` share: each prints a table and, last, one JSON object.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "dist/world.h"
#include "launch/config.h"

namespace laterna::launch {

double median(std::vector<double> values);

/// Seconds of each run of `work`, for about `budget` seconds, five runs at least, after some that
/// do not count.
std::vector<double> time_runs(double budget, const std::function<void()>& work);

/// Waits until a GPU has computed `result`; one number of it comes to the host.
void finish(const at::Tensor& result);

/// Floating-point operations a second, two to a multiply-add, of dense float32 products here in the
/// fastest library (model/dense_product.h, or LibTorch's own choice), measured for about `seconds`.
double dense_rate(at::Device device, double seconds);

/// Training steps or calls of the denoiser: of a new model by a configuration on random images, or
/// of `weights` (what `export` writes) on its data.
struct ModelBenchmark {
  bool trains;
  std::string config, weights;  // files; one of them
  Settings settings;
  double seconds;
};
int bench_model(const ModelBenchmark& benchmark, const dist::World& world);

/// The kernels that read spikes, at the sizes of the model's layers, in this process.
int bench_kernels(const Config& config, double seconds);

/// Collective, on any number of ranks; each kind is measured for about `seconds`. Rank 0 prints.
int bench_exchange(const Config& config, dist::World& world, double seconds);
int bench_scaling(Config config, dist::World& world, double seconds);
/// Trains on config.data.path; saves to a folder below `output`, which goes again.
int bench_checkpoint(Config config, dist::World& world, double seconds, const std::string& output);

/// The figures of image quality on random features, in one process. `output`, when given, is a
/// folder that gets generated.npz and reference.npz with the features, for other programs to judge.
int bench_fid(std::int64_t samples, std::int64_t features, const std::string& output);

/// Samples/s that this process trains alone, measured for about two seconds on a few samples.
double training_speed(Config config, const dist::World& world);

}  // namespace laterna::launch
