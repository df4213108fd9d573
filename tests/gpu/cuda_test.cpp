// Compares a GPU with the CPU: each operation that has a CUDA path, the whole model forward and
// backward, and optimiser steps. Collectives and training on GPUs are tested by tests_ranks, which
// uses the GPUs of its host; tests/gpu/run runs both. Exits with status 77 where there is no GPU.
#include <fmt/format.h>

#include <random>

#include "dist/device.h"
#include "model/attention.h"
#include "model/candidates.h"
#include "model/denoiser.h"
#include "model/diffusion.h"
#include "model/initialise.h"
#include "model/optimizer.h"
#include "model/spiking/norm_lif.h"
#include "model/spiking/spike_linear.h"
#include "tests/model/tensors.h"

namespace laterna::model {
namespace {

using Tensors = std::vector<at::Tensor>;

const at::Device kGpu(at::kCUDA, 0);

/// Expects an operation to give the same outputs and gradients on the GPU as on the CPU.
void expect_as_on_cpu(const Operation& operation, const Tensors& inputs) {
  const Operation there = [&](const Tensors& leaves) {
    Tensors moved;
    for (const auto& leaf : leaves) moved.push_back(leaf.to(kGpu));
    Tensors outputs;
    for (const auto& output : operation(moved)) outputs.push_back(output.cpu());
    return outputs;
  };
  expect_same(there, operation, inputs, tolerance_of(inputs[0].scalar_type()));
}

/// Returns `count` sequences over token blocks in random order; at some steps they have none.
Sequences random_paths(std::int64_t count, std::int64_t steps, std::int64_t tokens,
                       std::int64_t parameter_groups) {
  const at::Tensor silent = at::rand({count, steps}).lt(0.3);
  const std::int64_t blocks = count * steps - silent.sum().item<std::int64_t>();
  at::Tensor path = at::full({count, steps}, -1, at::kInt);
  path.masked_scatter_(silent.logical_not(), at::randperm(blocks).to(at::kInt));
  return {path, at::randint(parameter_groups, {count}, at::kInt), tokens};
}

TEST(Cuda, NormLif) {
  at::manual_seed(3);
  for (const auto dtype : {at::kDouble, at::kFloat}) {
    const std::int64_t tokens = 5, width = 24, parameter_groups = 3;
    const Sequences paths = random_paths(7, 3, tokens, parameter_groups);
    const std::int64_t blocks = (paths.blocks.ge(0)).sum().item<std::int64_t>();
    Tensors inputs{at::randn({blocks, tokens, width}, dtype)};
    for (int i = 0; i < parameter_groups; ++i) inputs.push_back(at::randn({width}, dtype) + 1);
    for (int i = 0; i < parameter_groups; ++i) inputs.push_back(at::randn({width}, dtype) + 1);
    expect_as_on_cpu(
        [&](const Tensors& in) {
          const Norms norms{{in[1], in[2], in[3]}, {in[4], in[5], in[6]}, 1};
          return Tensors{norm_lif(in[0], norms, paths, {}).values()};
        },
        inputs);
  }
}

TEST(Cuda, ResidualNormLif) {
  at::manual_seed(4);
  const auto all = Sequences::dense(3, 4, 5);
  const Tensors inputs{at::randn({3, 4, 5, 16}, at::kDouble), at::randn({3, 4, 5, 16}, at::kDouble),
                       at::randn({4, 16}, at::kDouble), at::randn({16}, at::kDouble) + 1,
                       at::randn({16}, at::kDouble) + 1};
  expect_as_on_cpu(
      [&](const Tensors& in) {
        const auto out = residual_norm_lif(in[0], in[1], in[2], {{in[3]}, {in[4]}, 1}, all, {});
        return Tensors{out.sum, out.spikes.values()};
      },
      inputs);
}

TEST(Cuda, SpikeAttention) {
  at::manual_seed(5);
  for (const std::int64_t tokens : {3, 40}) {
    const Tensors inputs{at::rand({2 * 3 * tokens, 3 * 24}).lt(0.3).to(at::kDouble)};
    expect_as_on_cpu(
        [&](const Tensors& in) {
          const Spikes qkv = Spikes::of(in[0], 3);
          return Tensors{spike_attention(qkv, 2, tokens, 2, kernels::Surrogate::kSigmoid).values()};
        },
        inputs);
  }
}

TEST(Cuda, SpikeLinear) {
  at::manual_seed(6);
  for (const bool bfloat16 : {false, true}) {
    const Tensors inputs{at::rand({30, 16}).lt(0.2).to(at::kDouble),
                         at::randn({8, 16}, at::kDouble), at::randn({8, 16}, at::kDouble),
                         at::randn({8}, at::kDouble), at::randn({8}, at::kDouble)};
    expect_as_on_cpu(
        [&](const Tensors& in) {
          const LinearGroups groups{{in[1], in[2]}, {in[3], in[4]}, {0, 11, 30}};
          return Tensors{spike_linear(Spikes::of(in[0]), groups, {false, bfloat16})};
        },
        inputs);
  }
}

TEST(Cuda, GatherAndCombine) {
  at::manual_seed(7);
  const at::Tensor mask = largest(at::rand({3, 4, 5}, at::kDouble), 2);
  const Assignments assignments = Assignments::of(mask, 2);
  expect_as_on_cpu(
      [&](const Tensors& in) {
        const Spikes here = gather(Spikes::of(in[0]), assignments, 2);
        return Tensors{combine(here.values().view({-1, 10}) * 3, in[1], assignments)};
      },
      {at::rand({24, 5}, at::kDouble).lt(0.4).to(at::kDouble), at::rand({12, 5}, at::kDouble)});
}

TEST(Cuda, MessagesAreThoseOfTheCpu) {
  at::manual_seed(8);
  const std::int64_t tokens = 3;
  for (const auto dtype : {at::kFloat, at::kDouble}) {
    for (const std::int64_t width : {1, 7, 8, 21, 1000}) {
      const at::Tensor values = at::rand({4 * tokens, width}).lt(0.3).to(dtype);
      const at::Tensor message = Spikes::of(values).message(tokens);
      const at::Tensor there = Spikes::of(values.to(kGpu)).message(tokens);
      EXPECT_TRUE(at::equal(there.cpu(), message));
      EXPECT_TRUE(at::equal(Spikes::of_message(there, width, dtype).values().cpu(), values));
    }
  }
}

ModelConfig small_model() {
  ModelConfig config;
  config.image_size = 8, config.patch = 2, config.width = 32, config.depth = 3, config.heads = 4;
  config.spiking_steps = 3, config.gamma_start = 0.5;
  return config;
}

struct Pass {
  at::Tensor epsilon, gradient;
};

/// Runs forward and backward of a model whose head is not zero.
Pass pass(const ModelConfig& config, at::ScalarType dtype, at::Device device) {
  Parameters parameters(parameter_specs(config), dtype, true, device);
  initialise(parameters, config, 5);
  at::manual_seed(9);
  {
    const at::NoGradGuard no_grad;
    parameters["head.weight"].copy_(at::randn(parameters["head.weight"].sizes(), at::kDouble));
  }
  const at::Tensor x = at::randn({4, 1, 8, 8}, at::kDouble).to(dtype).to(device);
  const at::Tensor t = at::tensor({0, 17, 500, 999}, at::kLong);
  const Denoiser denoiser(config, parameters, {dtype == at::kDouble, false});
  const at::Tensor epsilon = denoiser.forward(x, t, denoiser.route(t));
  epsilon.square().mean().backward();
  return {epsilon.detach().cpu(), parameters.gradient().cpu().clone()};
}

TEST(Cuda, DenoiserForwardAndBackward) {
  const Pass here = pass(small_model(), at::kDouble, at::kCPU);
  const Pass there = pass(small_model(), at::kDouble, kGpu);
  expect_close(there.epsilon, here.epsilon, 1e-12, "epsilon");
  expect_close(there.gradient, here.gradient, 1e-11, "gradient");
  EXPECT_GT(here.gradient.abs().max().item<double>(), 1e-3);
}

TEST(Cuda, RunsAreEqualBitForBit) {
  const Pass first = pass(small_model(), at::kFloat, kGpu);
  for (int i = 0; i < 3; ++i) {
    const Pass again = pass(small_model(), at::kFloat, kGpu);
    EXPECT_TRUE(at::equal(again.epsilon, first.epsilon));
    EXPECT_TRUE(at::equal(again.gradient, first.gradient));
  }
}

TEST(Cuda, Optimizer) {
  const ModelConfig config = small_model();
  Tensors results;
  for (const at::Device device : {at::Device(at::kCPU), kGpu}) {
    Parameters parameters(parameter_specs(config), at::kDouble, true, device);
    initialise(parameters, config, 5);
    Optimizer optimizer(parameters, 0.9);
    double squares = 0;
    for (int step = 0; step < 3; ++step) {
      at::manual_seed(step);
      parameters.gradient().copy_(at::randn(parameters.gradient().sizes(), at::kDouble));
      squares += sum_of_squares(parameters.gradient());
      optimizer.step(1e-2, 0.5);
    }
    results.push_back(at::cat({parameters.values().cpu(), optimizer.average().cpu(),
                               at::full({1}, squares, at::kDouble)}));
  }
  EXPECT_TRUE(at::allclose(results[1], results[0], 1e-12, 1e-13));
}

}  // namespace
}  // namespace laterna::model

int main(int argc, char** argv) {
  testing::InitGoogleTest(&argc, argv);
  const auto device = laterna::dist::Device::open(0);
  if (!device.is_cuda()) {
    fmt::print("GPU tests skipped: this process computes on {}\n", device.description());
    return 77;
  }
  fmt::print("GPU tests on {}\n", device.description());
  return RUN_ALL_TESTS();
}
