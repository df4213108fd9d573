// What the kernels and the operations that call them promise beyond their references, with which
// tests/launch/kernel_table_test.cpp compares them: thresholds, groups of rows, the same bits in
// any order of work, messages. ctest runs this program once for each instruction set that the
// processor has (LATERNA_KERNELS).
#include "model/kernels/cpu/kernels.h"

#include <ATen/Parallel.h>

#include <cmath>
#include <cstdlib>
#include <random>

#include "model/attention.h"
#include "model/spiking/norm_lif.h"
#include "model/spiking/spike_linear.h"
#include "model/spiking/spike_product.h"
#include "tests/model/tensors.h"
#define LATERNA_INSTRUCTION_SET under_test
#include "model/kernels/neuron.h"

namespace laterna::model {
namespace {

constexpr double kDensities[] = {0, 0.01, 0.05, 0.5, 1};  // shares of active inputs

TEST(Kernels, AreOfTheRequestedInstructionSet) {
  const std::string set = kernels::kernels<float>().instruction_set;
  EXPECT_EQ(set, kernels::kernels<double>().instruction_set);
  const char* wish = std::getenv("LATERNA_KERNELS");
  EXPECT_EQ(set, wish ? wish : set);
  RecordProperty("instruction_set", set);
}

// --- The surrogates' exponential ---

template <typename Real>
double worst_error(double low, int count) {
  std::mt19937_64 bits(1);
  std::uniform_real_distribution<double> uniform(low, 0), small(-1, 0);
  double worst = 0;
  for (int i = 0; i < count; ++i) {
    const auto x = static_cast<Real>(i % 4 ? uniform(bits) : small(bits));
    const long double exact = std::exp(static_cast<long double>(x));
    const long double off = kernels::under_test::exp_of_negative(x) - exact;
    worst = std::max(worst, static_cast<double>(std::abs(off) / exact));
  }
  return worst;
}

TEST(ExpOfNegative, HasTheDocumentedAccuracy) {
  EXPECT_LT(worst_error<float>(-87, 400000), 2e-7);
  EXPECT_LT(worst_error<double>(-708, 400000), 3e-16);
}

TEST(ExpOfNegative, IsOneAtZeroAndConstantBelowItsRange) {
  using kernels::under_test::exp_of_negative;
  EXPECT_EQ(exp_of_negative(0.0F), 1);
  EXPECT_EQ(exp_of_negative(0.0), 1);
  EXPECT_EQ(exp_of_negative(-1e30F), exp_of_negative(-87.0F));
  EXPECT_EQ(exp_of_negative(-1e300), exp_of_negative(-708.0));
  EXPECT_GT(exp_of_negative(-1e30F), 0);
  EXPECT_GT(exp_of_negative(-1e300), 0);
}

TEST(Spike, FiresAtTheThresholdWithTheSpecifiedDerivative) {
  const at::Tensor y = at::tensor({-2.0, -0.25, -1e-300, 0.0, 1e-300, 0.5, 3.0}, at::kDouble);
  for (const auto surrogate : kSurrogates) {
    at::Tensor leaf = y.clone().requires_grad_();
    const at::Tensor fired = spike(leaf, surrogate);
    EXPECT_TRUE(at::equal(fired, at::tensor({0, 0, 0, 1, 1, 1, 1}, at::kDouble)));
    fired.sum().backward();
    for (std::int64_t i = 0; i < y.numel(); ++i) {
      const double v = y[i].item<double>(), s = 1 / (1 + std::exp(-4 * v));
      const double wanted = surrogate == kernels::Surrogate::kSigmoid
                                ? 4 * s * (1 - s)
                                : 1 / (1 + std::pow(M_PI * v, 2));
      EXPECT_NEAR(leaf.grad()[i].item<double>(), wanted, 1e-14);
    }
  }
}

// --- Norm and neuron ---

// A training step reads both outputs; without a reader of one of them its gradient is undefined.
TEST(ResidualNormLif, EitherOutputMayBeUnused) {
  at::manual_seed(2);
  const std::int64_t steps = 3, batch = 3, tokens = 5, width = 33;
  const auto sequences = Sequences::dense(steps, batch, tokens);
  const std::vector<at::Tensor> inputs{at::randn({steps, batch, tokens, width}, at::kDouble),
                                       at::randn({steps, batch, tokens, width}, at::kDouble),
                                       1.5 + 0.5 * at::randn({width}, at::kDouble),
                                       at::randn({width}, at::kDouble)};
  for (const std::size_t used : {0, 1}) {
    SCOPED_TRACE(fmt::format("output {}", used));
    const auto fused = [&](const std::vector<at::Tensor>& in) -> std::vector<at::Tensor> {
      const auto out =
          residual_norm_lif(in[0], in[1], at::Tensor(), {{in[2]}, {in[3]}}, sequences, {});
      return {used == 0 ? out.sum : out.spikes.values().view(out.sum.sizes())};
    };
    const auto plain = [&](const std::vector<at::Tensor>& in) -> std::vector<at::Tensor> {
      const at::Tensor sum = in[0] + in[1];
      return {used == 0 ? sum : norm_lif_reference(sum, {{in[2]}, {in[3]}}, sequences, {})};
    };
    expect_same(fused, plain, inputs, 1e-12);
  }
}

// --- Attention ---

// One head of width 4, one token: a = (q . k) v / 2 = v, so U = a / 2 is exactly the threshold 0.5
// where v fires, and that is a spike.
TEST(SpikeAttention, FiresAtTheThreshold) {
  for (const auto dtype : {at::kDouble, at::kFloat}) {
    const at::Tensor qkv = at::tensor({1, 1, 0, 0, 1, 1, 0, 0, 1, 0, 0, 1}, dtype);
    const Spikes spikes =
        spike_attention(Spikes::of(qkv.view({1, 12}), 3), 1, 1, 1, kernels::Surrogate::kSigmoid);
    EXPECT_TRUE(at::equal(spikes.values().view({4}), at::tensor({1, 0, 0, 1}, dtype)));
  }
}

// --- Products of spikes ---

LinearGroups groups_of(const std::vector<at::Tensor>& inputs, std::size_t groups,
                       const std::vector<std::int64_t>& offsets) {
  const auto weights = inputs.begin() + 1;
  const auto biases = weights + static_cast<std::ptrdiff_t>(groups);
  return {{weights, biases}, {biases, inputs.end()}, offsets};
}

void expect_spike_linear(std::int64_t in, std::int64_t out, double density,
                         const std::vector<std::int64_t>& offsets, std::int64_t rows,
                         at::ScalarType dtype) {
  const std::size_t groups = offsets.empty() ? 1 : offsets.size() - 1;
  std::vector<at::Tensor> inputs{at::rand({rows, in}).lt(density).to(dtype)};
  for (std::size_t g = 0; g < groups; ++g) inputs.push_back(at::randn({out, in}, dtype));
  for (std::size_t g = 0; g < groups; ++g) inputs.push_back(at::randn({out}, dtype));
  const auto fused = [&](const std::vector<at::Tensor>& x) -> std::vector<at::Tensor> {
    return {spike_linear(Spikes::of(x[0]), groups_of(x, groups, offsets),
                         {dtype == at::kDouble, false})};
  };
  const auto plain = [&](const std::vector<at::Tensor>& x) -> std::vector<at::Tensor> {
    if (offsets.empty()) return {at::linear(x[0], x[1], x[2])};
    std::vector<at::Tensor> parts;
    for (std::size_t g = 0; g < groups; ++g) {
      parts.push_back(at::linear(x[0].narrow(0, offsets[g], offsets[g + 1] - offsets[g]), x[1 + g],
                                 x[1 + groups + g]));
    }
    return {at::cat(parts)};
  };
  expect_same(fused, plain, inputs, tolerance_of(dtype));
}

TEST(SpikeLinear, GroupsOfRowsMatchDenseLinearLayers) {
  at::manual_seed(4);
  for (const std::int64_t in : {1, 33, 200}) {
    for (const double density : kDensities) {
      for (const auto dtype : {at::kDouble, at::kFloat}) {
        SCOPED_TRACE(fmt::format("{} inputs density {}", in, density));
        expect_spike_linear(in, 70, density, {}, 23, dtype);
        expect_spike_linear(in, 70, density, {0, 4, 4, 5, 18}, 18, dtype);
        expect_spike_linear(in, 70, density, {0, 0, 9, 9}, 9, dtype);
      }
    }
  }
}

// More inputs and rows than fit in one tile of either kernel. Lists and dense multiplication add in
// the same order, so that the choice between them, which depends on measurements, changes no bit.
TEST(SpikeProduct, ListsAndDenseTilesGiveTheSameBits) {
  at::manual_seed(7);
  const Crossover lists{2, 2}, dense{-1, -1};
  for (const auto& [rows, in, out] :
       {std::tuple{1, 1, 1}, std::tuple{7, 65, 33}, std::tuple{40, 600, 130},
        std::tuple{1100, 530, 64}, std::tuple{2100, 70, 200}}) {
    for (const double density : kDensities) {
      for (const auto dtype : {at::kDouble, at::kFloat}) {
        SCOPED_TRACE(fmt::format("{} x {} -> {} density {}", rows, in, out, density));
        const Spikes spikes = Spikes::of(at::rand({rows, in}).lt(density).to(dtype));
        const at::Tensor weight = at::randn({out, in}, dtype), start = at::randn({out}, dtype);
        const at::Tensor grad = at::randn({rows, out}, dtype);
        at::Tensor listed = at::empty({rows, out}, dtype), multiplied = at::empty_like(listed);
        spike_product(spikes, weight, start, listed, lists);
        spike_product(spikes, weight, start, multiplied, dense);
        EXPECT_TRUE(at::equal(listed, multiplied));
        const at::Tensor gradient = spike_weight_gradient(spikes, grad, lists);
        EXPECT_TRUE(at::equal(gradient, spike_weight_gradient(spikes, grad, dense)));
      }
    }
  }
}

/// Returns rows of very different densities, silent and full ones among them.
at::Tensor uneven_spikes(std::int64_t rows, std::int64_t width, at::ScalarType dtype) {
  const at::Tensor density = at::rand({rows, 1}).mul(1.4).sub(0.2);
  density.slice(0, 0, rows / 3).mul_(0.05);
  return at::rand({rows, width}).lt(density).to(dtype);
}

TEST(SpikeProduct, HasTheSameBitsForAnyNumberOfThreads) {
  at::manual_seed(9);
  const int threads = at::get_num_threads();
  const Crossover mixed{0.3, 0.3};  // some tiles by lists, some densely
  for (const auto dtype : {at::kDouble, at::kFloat}) {
    const Spikes spikes = Spikes::of(uneven_spikes(2500, 90, dtype));
    const at::Tensor weight = at::randn({70, 90}, dtype), start = at::randn({70}, dtype);
    const at::Tensor grad = at::randn({2500, 70}, dtype);
    at::Tensor out = at::empty({2500, 70}, dtype), first_out, first_gradient;
    for (const int n : {1, 2, 3, 5}) {
      at::set_num_threads(n);
      spike_product(spikes, weight, start, out, mixed);
      const at::Tensor gradient = spike_weight_gradient(spikes, grad, mixed);
      if (n == 1) {
        first_out = out.clone();
        first_gradient = gradient;
        expect_close(out, at::linear(spikes.values(), weight, start), tolerance_of(dtype), "out");
        expect_close(gradient, at::mm(grad.t(), spikes.values()), 10 * tolerance_of(dtype),
                     "gradient");
      }
      EXPECT_TRUE(at::equal(out, first_out)) << n << " threads";
      EXPECT_TRUE(at::equal(gradient, first_gradient)) << n << " threads";
    }
    at::set_num_threads(threads);
  }
}

TEST(SpikeAttention, HasTheSameBitsForAnyNumberOfThreads) {
  at::manual_seed(10);
  const int threads = at::get_num_threads();
  const std::int64_t steps = 2, batch = 3, tokens = 20, heads = 5, width = 5 * 21;
  std::vector<at::Tensor> samples;
  for (const double density : {0.0, 0.6, 0.05}) {
    samples.push_back(at::rand({steps, 1, tokens, 3 * width}).lt(density).to(at::kFloat));
  }
  const at::Tensor qkv = at::cat(samples, 1).view({steps * batch * tokens, 3 * width});
  Result first;
  for (const int n : {1, 2, 3, 5}) {
    at::set_num_threads(n);
    const auto result = run(
        [&](const std::vector<at::Tensor>& in) -> std::vector<at::Tensor> {
          return {spike_attention(Spikes::of(in[0], 3), steps, tokens, heads,
                                  kernels::Surrogate::kSigmoid)
                      .values()};
        },
        {qkv});
    if (n == 1) first = result;
    EXPECT_TRUE(at::equal(result.outputs[0], first.outputs[0])) << n << " threads";
    EXPECT_TRUE(at::equal(result.gradients[0], first.gradients[0])) << n << " threads";
  }
  at::set_num_threads(threads);
  EXPECT_GT(first.outputs[0].sum().item<double>(), 0);
  EXPECT_GT(first.gradients[0].abs().max().item<double>(), 0);
}

TEST(SpikeLinear, AGroupWithoutRowsHasZeroNotUndefinedGradients) {
  at::manual_seed(5);
  for (const double density : {0.1, 0.6}) {
    std::vector<at::Tensor> inputs{at::rand({9, 40}).lt(density).to(at::kDouble)};
    for (int g = 0; g < 3; ++g) inputs.push_back(at::randn({6, 40}, at::kDouble));
    for (int g = 0; g < 3; ++g) inputs.push_back(at::randn({6}, at::kDouble));
    const auto result = run(
        [](const std::vector<at::Tensor>& x) -> std::vector<at::Tensor> {
          return {spike_linear(Spikes::of(x[0]), groups_of(x, 3, {0, 5, 5, 9}), {true, false})};
        },
        inputs);
    for (const std::size_t empty : {2, 5}) {
      ASSERT_TRUE(result.gradients[empty].defined());
      EXPECT_TRUE(at::equal(result.gradients[empty], at::zeros_like(inputs[empty])));
    }
    for (const std::size_t full : {1, 3, 4, 6}) {
      EXPECT_GT(result.gradients[full].abs().max().item<double>(), 0);
    }
  }
}

// Operands are rounded, sums are not: the expected values are computed in float64 from rounded
// operands.
TEST(SpikeLinear, RoundsOperandsToBfloat16) {
  at::manual_seed(6);
  const auto rounded = [](const at::Tensor& x) { return x.to(at::kBFloat16).to(at::kDouble); };
  for (const double density : kDensities) {
    const at::Tensor spikes = at::rand({31, 70}).lt(density).to(at::kFloat).requires_grad_();
    const at::Tensor weight = at::randn({50, 70}).requires_grad_();
    const at::Tensor bias = at::randn({50}).requires_grad_(), grad = at::randn({31, 50});
    const at::Tensor out = spike_linear(Spikes::of(spikes), {{weight}, {bias}, {}}, {false, true});
    out.backward(grad);
    const at::Tensor s = spikes.detach().to(at::kDouble), w = rounded(weight.detach());
    expect_close(out, at::linear(s, w, bias.detach().to(at::kDouble)), 1e-6, "output");
    expect_close(spikes.grad(), at::mm(rounded(grad), w), 1e-6, "spikes");
    expect_close(weight.grad(), at::mm(rounded(grad).t(), s), 1e-6, "weight");
    expect_close(bias.grad(), grad.sum(0), 1e-6, "bias");
    EXPECT_EQ(out.scalar_type(), at::kFloat);
  }
}

TEST(Spikes, AMessageIsLosslessAndThirtyTwoTimesSmaller) {
  at::manual_seed(9);
  const std::int64_t tokens = 3;
  for (const auto dtype : {at::kFloat, at::kDouble}) {
    for (const std::int64_t width : {1, 7, 8, 9, 64, 65, 1000}) {
      const at::Tensor values = at::rand({4 * tokens, width}).lt(0.3).to(dtype);
      const at::Tensor message = Spikes::of(values).message(tokens);
      EXPECT_EQ(message.sizes(), (std::vector<std::int64_t>{4, tokens * message_bytes(width)}));
      const at::Tensor rows = message.view({4 * tokens, -1});  // element i: bit i % 8 of byte i / 8
      for (std::int64_t i = 0; i < width; i += 5) {
        const at::Tensor bit = rows.select(1, i / 8).bitwise_right_shift(i % 8).bitwise_and(1);
        EXPECT_TRUE(at::equal(bit.to(dtype), values.select(1, i)));
      }
      EXPECT_TRUE(at::equal(Spikes::of_message(message, width, dtype).values(), values));
    }
  }
  EXPECT_EQ(32 * message_bytes(1024), 1024 * std::int64_t{sizeof(float)});
}

}  // namespace
}  // namespace laterna::model
