// Shared by the tests of this folder: comparison of tensors and of whole operations, gradients
// included.
#pragma once

#include <ATen/ATen.h>
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <functional>
#include <string>
#include <vector>

#include "model/kernels/cpu/kernels.h"

namespace laterna::model {

inline const std::vector<kernels::Surrogate> kSurrogates = {kernels::Surrogate::kSigmoid,
                                                            kernels::Surrogate::kArctangent};

/// Expects every element within `tolerance`, relative to the largest expected magnitude where that
/// is above 1.
inline void expect_close(const at::Tensor& actual, const at::Tensor& expected, double tolerance,
                         const std::string& what) {
  ASSERT_TRUE(actual.defined()) << what;
  ASSERT_EQ(actual.sizes(), expected.sizes()) << what;
  if (expected.numel() == 0) return;
  const at::Tensor wanted = expected.detach().to(at::kDouble);
  const double largest = std::max(1.0, wanted.abs().max().item<double>());
  const double off = (actual.detach().to(at::kDouble) - wanted).abs().max().item<double>();
  EXPECT_LE(off, tolerance * largest) << what;
}

using Operation = std::function<std::vector<at::Tensor>(const std::vector<at::Tensor>&)>;

struct Result {
  std::vector<at::Tensor> outputs, gradients;  // gradients of the inputs, undefined where unused
};

/// Returns the outputs, and the gradients of the inputs for a fixed random weighting of all
/// outputs.
inline Result run(const Operation& operation, const std::vector<at::Tensor>& inputs) {
  Result result;
  std::vector<at::Tensor> leaves;
  for (const auto& input : inputs) leaves.push_back(input.detach().clone().requires_grad_());
  result.outputs = operation(leaves);
  at::manual_seed(99);
  at::Tensor loss = at::zeros({}, inputs[0].options());
  for (const auto& out : result.outputs) {
    loss = loss + (out * at::randn(out.sizes(), out.options())).sum();
  }
  loss.backward();
  for (const auto& leaf : leaves) result.gradients.push_back(leaf.grad());
  return result;
}

/// Expects two operations to agree in outputs and gradients; an undefined gradient counts as zero.
inline void expect_same(const Operation& fused, const Operation& plain,
                        const std::vector<at::Tensor>& inputs, double tolerance) {
  const Result actual = run(fused, inputs), expected = run(plain, inputs);
  ASSERT_EQ(actual.outputs.size(), expected.outputs.size());
  for (std::size_t i = 0; i < expected.outputs.size(); ++i) {
    expect_close(actual.outputs[i], expected.outputs[i], tolerance, fmt::format("output {}", i));
  }
  for (std::size_t i = 0; i < inputs.size(); ++i) {
    const auto or_zero = [&](const at::Tensor& g) {
      return g.defined() ? g : at::zeros_like(inputs[i]);
    };
    expect_close(or_zero(actual.gradients[i]), or_zero(expected.gradients[i]), tolerance,
                 fmt::format("gradient {}", i));
  }
}

/// Returns the tolerance to which results must agree; float32 loses more in sums of some hundred
/// terms.
inline double tolerance_of(at::ScalarType dtype) { return dtype == at::kDouble ? 1e-12 : 1e-4; }

}  // namespace laterna::model
