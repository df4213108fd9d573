#include <ATen/ATen.h>

#include <algorithm>

#include "launch/bench/kernel_trials.h"
#include "model/attention.h"
#include "model/spiking/dense_product.h"
#include "model/spiking/norm_lif.h"

namespace laterna::launch {

using model::Spikes;

// --- Norm and neuron ---

namespace {

/// Returns B sequences over token blocks.
model::Sequences sequences_of(const KernelShape& s) {
  auto sequences = model::Sequences::dense(s.steps, s.batch, s.tokens);
  if (s.parameter_groups > 1) {
    sequences.parameter_groups = at::randint(s.parameter_groups, {s.batch}, at::kInt);
  }
  if (s.paths == Paths::kDense) return sequences;
  const at::Tensor active = at::rand({s.batch, s.steps}).gt(s.paths == Paths::kSilent ? 0.4 : -1.0);
  for (std::int64_t b = 0; b < s.batch; ++b) active[b][b % s.steps] = true;
  sequences.blocks.fill_(-1).masked_scatter_(
      active, at::randperm(active.sum().item<std::int64_t>(), at::kInt));
  return sequences;
}

/// Returns the norms among the inputs: x, delta and shift where there are any, weights, biases.
model::Norms norms_of(const KernelShape& s, const Tensors& in) {
  const auto weights = in.begin() + 1 + s.delta + s.shift;
  const auto biases = weights + s.groups * s.parameter_groups;
  return {{weights, biases}, {biases, in.end()}, s.groups};
}

Tensors plain_norm_lif(const KernelShape& s, const model::Sequences& sequences, double threshold,
                       const Tensors& in) {
  at::Tensor x = in[0];
  if (s.delta) x = x + in[1];
  if (s.shift) x = x + in[1 + s.delta].view({1, s.batch, 1, s.width});
  const at::Tensor spikes =
      model::norm_lif_reference(x, norms_of(s, in), sequences, {threshold, s.surrogate});
  return s.delta || s.shift ? Tensors{x, spikes} : Tensors{spikes};
}

Outputs fused_norm_lif(const KernelShape& s, const model::Sequences& sequences, const Tensors& in) {
  const model::Norms norms = norms_of(s, in);
  const model::NeuronOptions options{s.threshold, s.surrogate};
  if (!s.delta && !s.shift) return {model::norm_lif(in[0], norms, sequences, options)};
  const auto out =
      model::residual_norm_lif(in[0], s.delta ? in[1] : at::Tensor(),
                               s.shift ? in[1 + s.delta] : at::Tensor(), norms, sequences, options);
  return {{out.sum, at::Tensor()}, out.spikes};
}

KernelTrial norm_lif(const KernelShape& s, at::ScalarType dtype,
                     KernelTrial (*direction)(const Operation&)) {
  const model::Sequences sequences = sequences_of(s);
  const std::int64_t norms = s.groups * s.parameter_groups;
  const std::int64_t row = s.groups * s.width;
  Tensors inputs;
  if (s.paths == Paths::kDense) {
    inputs.push_back(at::randn({s.steps, s.batch, s.tokens, row}, dtype));
  } else {
    const auto blocks = sequences.blocks.max().item<std::int64_t>() + 1;
    inputs.push_back(at::randn({blocks, s.tokens, row}, dtype));
  }
  if (s.delta) inputs.push_back(at::randn_like(inputs[0]));
  if (s.shift) inputs.push_back(at::randn({s.batch, s.width}, dtype));
  // Large enough that neurons fire often.
  for (std::int64_t i = 0; i < norms; ++i) inputs.push_back(1.5 + 0.5 * at::randn(s.width, dtype));
  for (std::int64_t i = 0; i < norms; ++i) inputs.push_back(at::randn(s.width, dtype));
  KernelTrial trial = direction(
      {dense(inputs), [=](const Outputs& in) { return fused_norm_lif(s, sequences, proxies(in)); },
       [=](const Tensors& in) { return plain_norm_lif(s, sequences, s.threshold, in); }});
  // With width 1 the deviation from the mean is only a rounding error, which the norm multiplies by
  // 1 / sqrt(1e-5).
  const double margin = rounding(dtype) * (s.width == 1 ? 10 : 0.1);
  trial.undecided = [=] {
    const auto spikes = [&](double threshold) {
      return plain_norm_lif(s, sequences, threshold, inputs).back();
    };
    return !at::equal(spikes(s.threshold - margin), spikes(s.threshold + margin));
  };
  const Outputs out = fused_norm_lif(s, sequences, inputs);
  trial.density = out.back().values().mean().item<double>();
  return trial;
}

}  // namespace

// Mean, deviation, normalising and the neuron take about 12 operations per element (two per
// multiply-add); the backward pass, with the surrogate's exponential, about 36.
KernelTrial norm_lif_forward(const KernelShape& s, at::ScalarType dtype) {
  KernelTrial trial = norm_lif(s, dtype, forward);
  const double elements = double(s.rows() * s.groups * s.width);
  trial.additions = 6 * elements;
  trial.flops = 12 * elements;
  trial.bytes = (4.125 + 4 * s.delta + 4 * (s.delta || s.shift)) * elements;
  return trial;
}

KernelTrial norm_lif_backward(const KernelShape& s, at::ScalarType dtype) {
  KernelTrial trial = norm_lif(s, dtype, backward);
  trial.tolerance = rounding(dtype) * (s.width == 1 ? 10 : 1);
  const double elements = double(s.rows() * s.groups * s.width);
  trial.additions = 18 * elements;
  trial.flops = 36 * elements;
  trial.bytes = (12.125 + 4 * (s.delta || s.shift)) * elements;
  return trial;
}

// --- Attention ---

namespace {

Operation attention(const KernelShape& s, at::ScalarType dtype) {
  const Spikes qkv = random_spikes(s.rows(), s.width, s.density, dtype, 3);
  return {{qkv},
          [=](const Outputs& in) -> Outputs {
            return {model::spike_attention(in[0], s.steps, s.tokens, s.heads, s.surrogate)};
          },
          [=](const Tensors& in) -> Tensors {
            const at::Tensor rows = in[0].view({s.steps, s.batch, s.tokens, 3 * s.width});
            return {model::spike_attention_reference(rows, s.heads, s.surrogate)};
          }};
}

}  // namespace

KernelTrial attention_forward(const KernelShape& s, at::ScalarType dtype) {
  KernelTrial trial = forward(attention(s, dtype));
  const std::int64_t depth = s.width / s.heads;
  const double entries = double(s.rows() * s.width);
  trial.density = s.density;
  trial.additions = s.density * entries * double(depth) * (s.density + 1);
  trial.bytes = entries / 8 * 4;
  trial.flops = 4 * entries * double(std::min(depth, s.tokens));
  return trial;
}

// Counts (k^T v) and currents are computed again; then the gradient of q densely, those of the
// counts, k and v as sums of rows selected by spikes.
KernelTrial attention_backward(const KernelShape& s, at::ScalarType dtype) {
  KernelTrial trial = backward(attention(s, dtype));
  const std::int64_t depth = s.width / s.heads;
  const double entries = double(s.rows() * s.width);
  trial.tolerance = rounding(dtype);
  trial.density = s.density;
  trial.additions = (s.density * (s.density + 4) + 1) * entries * double(depth);
  trial.bytes = entries / 8 * 4 + 4 * 4 * entries;
  trial.flops = 8 * entries * double(std::min(depth, s.tokens));
  return trial;
}

// --- Products of spikes ---

namespace {

/// The work of a linear layer or of its weight gradient.
void count_product(const KernelShape& s, const at::Tensor& values, KernelTrial& trial) {
  const double rows = double(s.rows()), in = double(s.width), out = double(s.columns);
  trial.density = s.density;
  trial.additions = values.sum(at::kDouble).item<double>() * out;
  trial.bytes = rows * in / 8 + 4 * in * out + 4 * rows * out;
  trial.flops = 2 * rows * in * out;
}

}  // namespace

KernelTrial product(const KernelShape& s, at::ScalarType dtype) {
  const Spikes spikes = random_spikes(s.rows(), s.width, s.density, dtype);
  const at::Tensor weight = exact({s.columns, s.width}, dtype), start = exact({s.columns}, dtype);
  at::Tensor out = at::empty({s.rows(), s.columns}, dtype), library = at::empty_like(out);
  const at::Tensor values = spikes.proxy;
  KernelTrial trial;
  trial.kernel = [=]() mutable {
    model::spike_product(spikes, weight, start, out, s.crossover);
    return dense({out});
  };
  trial.reference = [=]() -> Tensors { return {at::linear(values, weight, start)}; };
  trial.rivals = {[=]() mutable { at::mm_out(library, values, weight.t()); },
                  [=] { model::dense_product(values, weight.t()); }};
  count_product(s, values, trial);
  return trial;
}

KernelTrial weight_gradient(const KernelShape& s, at::ScalarType dtype) {
  const Spikes spikes = random_spikes(s.rows(), s.width, s.density, dtype);
  const at::Tensor grad = exact({s.rows(), s.columns}, dtype), turned = grad.t().contiguous();
  const at::Tensor values = spikes.proxy;
  KernelTrial trial;
  trial.kernel = [=] { return dense({model::spike_weight_gradient(spikes, grad, s.crossover)}); };
  trial.reference = [=]() -> Tensors { return {at::mm(grad.t(), values)}; };
  trial.rivals = {[=] { model::dense_product(turned, values); }};
  count_product(s, values, trial);
  return trial;
}

// --- Packing ---

namespace {

/// Returns values [rows, groups * width] as words, in which element i is bit i % 64 of word i / 64.
at::Tensor words_of(const at::Tensor& values, std::int64_t groups) {
  const std::int64_t rows = values.size(0), width = values.size(1) / groups;
  const at::Tensor padded = at::constant_pad_nd(values.to(at::kLong).view({rows, groups, width}),
                                                {0, (64 - width % 64) % 64});
  return at::bitwise_left_shift(padded.view({rows, -1, 64}), at::arange(64)).sum(-1);
}

void count_packing(const KernelShape& s, KernelTrial& trial) {
  trial.density = s.density;
  trial.additions = trial.flops = double(s.rows() * s.groups * s.width);
  trial.bytes = 4.125 * trial.flops;
}

}  // namespace

KernelTrial pack(const KernelShape& s, at::ScalarType dtype) {
  const at::Tensor values = random_spikes(s.rows(), s.width, s.density, dtype, s.groups).proxy;
  KernelTrial trial;
  trial.kernel = [=] { return dense({Spikes::of(values, s.groups).bits}); };
  trial.reference = [=]() -> Tensors { return {words_of(values, s.groups)}; };
  count_packing(s, trial);
  return trial;
}

KernelTrial unpack(const KernelShape& s, at::ScalarType dtype) {
  const at::Tensor values = random_spikes(s.rows(), s.width, s.density, dtype, s.groups).proxy;
  const Spikes spikes = Spikes::of_bits(words_of(values, s.groups), s.width, dtype, s.groups);
  KernelTrial trial;
  trial.kernel = [=] { return dense({spikes.values()}); };
  trial.reference = [=]() -> Tensors {
    const at::Tensor bits = at::bitwise_right_shift(spikes.bits.unsqueeze(-1), at::arange(64));
    return {bits.bitwise_and(1).view({s.rows(), s.groups, -1}).narrow(2, 0, s.width).to(dtype)};
  };
  count_packing(s, trial);
  return trial;
}

}  // namespace laterna::launch
