// Compares each fused operation with its reference in tensor operations, forward and backward: odd
// sizes, silent steps, several parameter groups. ctest runs this program once for each instruction
// set that the processor has (LATERNA_KERNELS).
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

/// Returns `count` sequences over token blocks in random order; with `silent` some steps have none.
Sequences random_sequences(std::int64_t count, std::int64_t steps, std::int64_t tokens,
                           std::int64_t parameter_groups, bool silent) {
  const at::Tensor active = at::rand({count, steps}).gt(silent ? 0.4 : -1.0);
  for (std::int64_t s = 0; s < count; ++s) active[s][s % steps] = true;
  const at::Tensor blocks = at::full({count, steps}, -1, at::kInt);
  blocks.masked_scatter_(active, at::randperm(active.sum().item<std::int64_t>(), at::kInt));
  return {blocks,
          parameter_groups > 1 ? at::randint(parameter_groups, {count}, at::kInt) : at::Tensor(),
          tokens};
}

Norms norms_of(const std::vector<at::Tensor>& inputs, std::size_t first, std::int64_t groups) {
  const std::size_t half = (inputs.size() - first) / 2;
  const auto weights = inputs.begin() + static_cast<std::ptrdiff_t>(first);
  const auto biases = weights + static_cast<std::ptrdiff_t>(half);
  return {{weights, biases}, {biases, inputs.end()}, groups};
}

/// Appends weights and biases large enough that neurons fire often.
void add_norms(std::vector<at::Tensor>& inputs, std::int64_t norms, std::int64_t width,
               at::ScalarType dtype) {
  for (std::int64_t i = 0; i < norms; ++i) {
    inputs.push_back(1.5 + 0.5 * at::randn({width}, dtype));
  }
  for (std::int64_t i = 0; i < norms; ++i) inputs.push_back(at::randn({width}, dtype));
}

struct NormCase {
  std::int64_t steps, tokens, width, groups, parameter_groups;
  bool silent;
};

void expect_norm_lif(const NormCase& c, const NeuronOptions& options, at::ScalarType dtype) {
  const auto sequences = random_sequences(4, c.steps, c.tokens, c.parameter_groups, c.silent);
  const std::int64_t blocks = sequences.blocks.max().item<std::int64_t>() + 1;
  std::vector<at::Tensor> inputs{at::randn({blocks, c.tokens, c.groups * c.width}, dtype)};
  add_norms(inputs, c.groups * c.parameter_groups, c.width, dtype);
  const auto fused = [&](const std::vector<at::Tensor>& in) -> std::vector<at::Tensor> {
    const Spikes spikes = norm_lif(in[0], norms_of(in, 1, c.groups), sequences, options);
    return {spikes.values().view(in[0].sizes())};
  };
  const auto plain = [&](const std::vector<at::Tensor>& in) -> std::vector<at::Tensor> {
    return {norm_lif_reference(in[0], norms_of(in, 1, c.groups), sequences, options)};
  };
  // With width 1 the deviation from the mean is only a rounding error, which the norm multiplies by
  // 1 / sqrt(1e-5).
  const double tolerance = tolerance_of(dtype) * (c.width == 1 ? 10 : 1);
  expect_same(fused, plain, inputs, tolerance);
}

TEST(NormLif, MatchesItsReference) {
  at::manual_seed(1);
  for (const std::int64_t steps : {1, 2, 3, 4}) {
    for (const std::int64_t tokens : {1, 5}) {
      for (const std::int64_t width : {1, 7, 33}) {
        for (const auto& [groups, parameter_groups] :
             {std::pair{1, 1}, std::pair{3, 1}, std::pair{2, 3}}) {
          for (const bool silent : {false, true}) {
            const auto dtype = (steps + tokens + parameter_groups) % 2 ? at::kFloat : at::kDouble;
            for (const auto surrogate : kSurrogates) {
              SCOPED_TRACE(fmt::format("T {} M {} D {} groups {} parameter_groups {} silent {} {}",
                                       steps, tokens, width, groups, parameter_groups, silent,
                                       c10::toString(dtype)));
              const NormCase c{steps, tokens, width, groups, parameter_groups, silent};
              expect_norm_lif(c, {1, surrogate}, at::kDouble);
              if (dtype == at::kFloat) expect_norm_lif(c, {0.5, surrogate}, dtype);
            }
          }
        }
      }
    }
  }
}

// With these thresholds no neuron fires, few, many or all of them: membranes stay close to the
// normalised rows.
TEST(NormLif, MatchesItsReferenceAtAnyFiringRate) {
  at::manual_seed(8);
  for (const double threshold : {1e3, 4.0, 0.5, -1e3}) {
    for (const auto dtype : {at::kDouble, at::kFloat}) {
      for (const auto surrogate : kSurrogates) {
        SCOPED_TRACE(fmt::format("threshold {} {}", threshold, c10::toString(dtype)));
        expect_norm_lif({3, 5, 77, 2, 3, true}, {threshold, surrogate}, dtype);
      }
    }
  }
}

enum class Used { kBoth, kSum, kSpikes };

void expect_residual(std::int64_t steps, std::int64_t tokens, std::int64_t width, bool with_delta,
                     bool with_shift, Used used, at::ScalarType dtype) {
  const std::int64_t batch = 3;
  const auto sequences = Sequences::dense(steps, batch, tokens);
  const auto options = NeuronOptions{1, kSurrogates[static_cast<std::size_t>(steps % 2)]};
  std::vector<at::Tensor> inputs{at::randn({steps, batch, tokens, width}, dtype),
                                 at::randn({steps, batch, tokens, width}, dtype),
                                 at::randn({batch, width}, dtype)};
  add_norms(inputs, 1, width, dtype);
  const auto keep = [used](const at::Tensor& sum, const at::Tensor& spikes) {
    if (used == Used::kSum) return std::vector<at::Tensor>{sum};
    if (used == Used::kSpikes) return std::vector<at::Tensor>{spikes};
    return std::vector<at::Tensor>{sum, spikes};
  };
  const auto fused = [&](const std::vector<at::Tensor>& in) {
    const auto out = residual_norm_lif(in[0], with_delta ? in[1] : at::Tensor(),
                                       with_shift ? in[2] : at::Tensor(), norms_of(in, 3, 1),
                                       sequences, options);
    return keep(out.sum, out.spikes.values().view(out.sum.sizes()));
  };
  const auto plain = [&](const std::vector<at::Tensor>& in) {
    at::Tensor sum = in[0];
    if (with_delta) sum = sum + in[1];
    if (with_shift) sum = sum + in[2].view({1, batch, 1, width});
    return keep(sum, norm_lif_reference(sum, norms_of(in, 3, 1), sequences, options));
  };
  expect_same(fused, plain, inputs, tolerance_of(dtype));
}

TEST(ResidualNormLif, MatchesItsReference) {
  at::manual_seed(2);
  for (const std::int64_t steps : {1, 4}) {
    for (const std::int64_t tokens : {1, 5}) {
      for (const std::int64_t width : {1, 7, 33}) {
        for (const auto& [delta, shift] :
             {std::pair{true, false}, std::pair{false, true}, std::pair{true, true}}) {
          for (const Used used : {Used::kBoth, Used::kSum, Used::kSpikes}) {
            SCOPED_TRACE(fmt::format("T {} M {} D {} delta {} shift {} outputs {}", steps, tokens,
                                     width, delta, shift, static_cast<int>(used)));
            for (const auto dtype : {at::kDouble, at::kFloat}) {
              expect_residual(steps, tokens, width, delta, shift, used, dtype);
            }
          }
        }
      }
    }
  }
}

// --- Attention ---

struct AttentionCase {
  std::int64_t steps, tokens, heads, depth;
};

void expect_attention(const AttentionCase& c, double density, kernels::Surrogate surrogate,
                      at::ScalarType dtype) {
  SCOPED_TRACE(fmt::format("T {} M {} heads {} of width {} density {} {}", c.steps, c.tokens,
                           c.heads, c.depth, density, c10::toString(dtype)));
  const at::Tensor qkv =
      at::rand({c.steps, 2, c.tokens, 3 * c.heads * c.depth}).lt(density).to(dtype);
  const auto fused = [&](const std::vector<at::Tensor>& in) -> std::vector<at::Tensor> {
    const Spikes spikes = Spikes::of(in[0].view({-1, qkv.size(3)}), 3);
    const Spikes out = spike_attention(spikes, c.steps, c.tokens, c.heads, surrogate);
    return {out.values().view({c.steps, 2, c.tokens, -1})};
  };
  const auto plain = [&](const std::vector<at::Tensor>& in) -> std::vector<at::Tensor> {
    return {spike_attention_reference(in[0], c.heads, surrogate)};
  };
  expect_same(fused, plain, {qkv}, tolerance_of(dtype));
}

TEST(SpikeAttention, MatchesItsReference) {
  at::manual_seed(3);
  for (const double density : kDensities) {
    for (const auto dtype : {at::kDouble, at::kFloat}) {
      for (const auto surrogate : kSurrogates) {
        for (const std::int64_t steps : {1, 2, 3, 4}) {
          for (const std::int64_t tokens : {1, 5, 19}) {
            for (const auto& [heads, depth] :
                 {std::pair{1, 1}, std::pair{1, 33}, std::pair{3, 7}, std::pair{2, 16},
                  std::pair{2, 64}, std::pair{2, 70}}) {
              expect_attention({steps, tokens, heads, depth}, density, surrogate, dtype);
            }
          }
        }
        // More tokens than a byte can count.
        expect_attention({1, 300, 2, 9}, density, surrogate, dtype);
        expect_attention({2, 511, 1, 64}, density, surrogate, dtype);
      }
    }
  }
}

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

TEST(SpikeLinear, MatchesADenseLinearLayer) {
  at::manual_seed(4);
  for (const std::int64_t in : {1, 7, 33, 200}) {
    for (const std::int64_t out : {1, 7, 33, 64, 130, 300}) {
      for (const double density : kDensities) {
        for (const auto dtype : {at::kDouble, at::kFloat}) {
          SCOPED_TRACE(fmt::format("{} -> {} density {}", in, out, density));
          expect_spike_linear(in, out, density, {}, 1, dtype);
          expect_spike_linear(in, out, density, {}, 23, dtype);
          expect_spike_linear(in, out, density, {0, 4, 4, 5, 18}, 18, dtype);
          expect_spike_linear(in, out, density, {0, 0, 9, 9}, 9, dtype);
        }
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
        expect_close(listed, at::linear(spikes.values(), weight, start), tolerance_of(dtype),
                     "product");
        const at::Tensor gradient = spike_weight_gradient(spikes, grad, lists);
        EXPECT_TRUE(at::equal(gradient, spike_weight_gradient(spikes, grad, dense)));
        expect_close(gradient, at::mm(grad.t(), spikes.values()), tolerance_of(dtype), "gradient");
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
