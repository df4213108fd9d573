// The table of the CPU kernels: for each its sizes, its inputs, its call and its plain reference.
// tests/launch/kernel_table_test.cpp compares each kernel with its reference on every instruction
// set of the processor, and `laterna bench kernels` times both. A kernel is called through the
// model's operation, which divides it among threads and chooses the kernel by the tensors' device.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "model/kernels/cpu/kernels.h"
#include "model/model_config.h"
#include "model/spiking/spike_product.h"
#include "model/spiking/spikes.h"

namespace laterna::launch {

/// Where the token blocks of a sequence are: that of sample b at step t at t * B + b; or in any
/// order; or in any order, and some steps have none.
enum class Paths { kDense, kShuffled, kSilent };

/// The sizes and options of one case; a kernel reads those that it has.
struct KernelShape {
  std::string layer{};                                       // of the model, in a benchmark
  std::int64_t steps = 1, batch = 1, tokens = 1, width = 1;  // T, B, M, D
  std::int64_t columns = 1;                                  // outputs of a linear layer
  std::int64_t heads = 1;
  std::int64_t groups = 1, parameter_groups = 1;  // see kernels::NormLif
  std::int64_t candidates = 1, selected = 1;      // N, k
  double density = 0.3;                           // share of the spikes read that fire
  double threshold = 1;
  kernels::Surrogate surrogate = kernels::Surrogate::kSigmoid;
  Paths paths = Paths::kDense;
  bool delta = false, shift = false;  // what is added to the residual stream before a norm
  bool lateral = true;
  model::Crossover crossover{2, 2};

  std::int64_t rows() const { return steps * batch * tokens; }
  std::string describe() const;
};

/// A kernel and its reference, with their inputs.
struct KernelTrial {
  /// Dense results are spikes without bits.
  std::function<std::vector<model::Spikes>()> kernel;
  std::function<std::vector<at::Tensor>()> reference;
  double tolerance = 0;  // relative to the largest magnitude above 1; 0: the results are equal
  /// Whether a potential is so close to the threshold that rounding decides whether it fires, so
  /// that the results cannot be compared; empty: never.
  std::function<bool()> undecided;

  double density = 1;                           // share of the spikes read or written that fire
  double additions = 0, bytes = 0;              // of the kernel: read or written once
  double flops = 0;                             // of the reference, two per multiply-add
  std::vector<std::function<void()>> rivals{};  // other dense ways, which a benchmark also times
};

struct Kernel {
  std::string name;
  KernelTrial (*trial)(const KernelShape& shape, at::ScalarType dtype);
  std::vector<KernelShape> test_shapes;
  /// Returns the sizes at which a model runs the kernel.
  std::vector<KernelShape> (*model_shapes)(const model::ModelConfig& model, std::int64_t batch);
};

const std::vector<Kernel>& kernel_table();

}  // namespace laterna::launch
