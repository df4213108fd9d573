// The benchmarks of `laterna bench` and the helpers that they share. Every benchmark prints a table
// for people and, as its last line, one JSON object.
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

/// Returns the seconds of each run of `work`: at least five runs, for about `budget` seconds, after
/// a few warm-up runs that are not timed.
std::vector<double> time_runs(double budget, const std::function<void()>& work);

/// Waits until a GPU has computed `result`, by copying one of its numbers to the host.
void finish(const at::Tensor& result);

/// Returns the floating-point operations per second (two per multiply-add) of dense float32 matrix
/// products on `device` in the faster library (model/spiking/dense_product.h or LibTorch's own
/// choice), measured for about `seconds`.
double dense_rate(at::Device device, double seconds);

/// A benchmark of training steps or of calls of the denoiser, either of a new model with the
/// configuration file `config` on random images, or of the model in `weights`, a file written by
/// `export`, on images of its data.path.
struct ModelBenchmark {
  bool trains;
  std::string config, weights;  // paths; exactly one is set
  Settings settings;
  double seconds;
};
int bench_model(const ModelBenchmark& benchmark, dist::World& world);

/// Measures every CPU kernel (launch/bench/kernel_table.h) on every instruction set of the
/// processor, at the sizes of the model's layers, in this process.
int bench_kernels(const Config& config, double seconds);

/// Collective. Measures each kind of exchange for about `seconds`; rank 0 prints. Throws
/// CollectiveError on a single rank.
int bench_exchange(const Config& config, dist::World& world, double seconds);
/// Collective, on any number of ranks. Measures each layout for about `seconds`; rank 0 prints.
int bench_scaling(Config config, dist::World& world, double seconds);
/// Collective, on any number of ranks. Trains on config.data.path for about `seconds` and saves to
/// a folder below `output`, which is deleted afterwards; rank 0 prints.
int bench_checkpoint(Config config, dist::World& world, double seconds, const std::string& output);

/// Measures the computation of FID, KID, precision and recall on random features, in one process.
/// Unless `output` is empty, writes the features to generated.npz and reference.npz in that folder,
/// so that other programs can compute the same figures.
int bench_fid(std::int64_t samples, std::int64_t features, const std::string& output);

/// Returns the samples/s of training in a single process, measured for about two seconds on batches
/// of at most eight samples.
double training_speed(Config config, dist::World& world);

}  // namespace laterna::launch
