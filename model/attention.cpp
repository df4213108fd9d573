#include "model/attention.h"

#include <ATen/ATen.h>
#include <ATen/Dispatch.h>
#include <torch/csrc/autograd/custom_function.h>

#include <cmath>
#include <numeric>
#include <vector>

#include "model/kernels/cpu/parallel.h"
#include "model/probes/part.h"
#include "model/spiking/neuron.h"

namespace laterna::model {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::Function;
using torch::autograd::variable_list;

/// bits: those of qkv, [T*B*M, 3 * words_of(D)]; shape: T, M, A, surrogate.
template <typename Real>
kernels::Attention<Real> arguments_of(const at::Tensor& bits, std::int64_t width,
                                      const std::vector<std::int64_t>& shape) {
  kernels::Attention<Real> a{};
  a.steps = shape[0];
  a.tokens = shape[1];
  a.heads = shape[2];
  a.surrogate = static_cast<kernels::Surrogate>(shape[3]);
  a.batch = bits.size(0) / (a.steps * a.tokens);
  a.head_width = width / a.heads;
  a.scale = Real(1 / std::sqrt(double(a.head_width)));
  a.threshold = Real(kAttentionThreshold);
  a.qkv = words_in(bits);
  return a;
}

/// Returns the estimated cost of all heads before each one, sample by sample, [B*A + 1]. The cost
/// of a sample, divided among its heads, is the number of its spikes in qkv plus, for the neurons,
/// a tenth of the number of spikes possible.
template <typename Real>
std::vector<std::int64_t> cost_before_heads(const kernels::Attention<Real>& a,
                                            const at::Tensor& qkv) {
  const auto fired = fired_of_rows(qkv);  // [T*B*M]
  std::vector<std::int64_t> before{0};
  for (std::int64_t sample = 0; sample < a.batch; ++sample) {
    std::int64_t cost = a.steps * a.tokens * 3 * a.heads * a.head_width / 10;
    for (std::int64_t t = 0; t < a.steps; ++t) {
      const auto first = fired.begin() + (t * a.batch + sample) * a.tokens;
      cost = std::accumulate(first, first + a.tokens, cost);
    }
    for (std::int64_t head = 0; head < a.heads; ++head) {
      before.push_back(before.back() + cost / a.heads);
    }
  }
  return before;
}

/// The autograd function of spike_attention. Inputs: gradient proxy and bits of qkv; shape: T, M,
/// A, surrogate. Outputs: bits and gradient proxy of the spikes.
class AttentionFunction : public Function<AttentionFunction> {
 public:
  static variable_list forward(AutogradContext* context, const at::Tensor& proxy,
                               const at::Tensor& qkv, const std::vector<std::int64_t>& shape) {
    RECORD_USER_SCOPE(part::kAttention);
    const std::int64_t rows = qkv.size(0), width = proxy.size(1) / 3;
    const at::Tensor bits =
        at::zeros({rows, kernels::words_of(width)}, at::TensorOptions(at::kLong));
    AT_DISPATCH_FLOATING_TYPES(proxy.scalar_type(), "spike_attention", [&] {
      auto arguments = arguments_of<scalar_t>(qkv, width, shape);
      arguments.spikes = words_in(bits);
      run(arguments, qkv, kernels::kernels<scalar_t>().attention_forward, false);
    });
    context->save_for_backward({qkv, bits});
    context->saved_data["shape"] = shape;
    context->mark_non_differentiable({bits});
    return {bits, empty_proxy({rows, width}, proxy.scalar_type())};
  }

  static variable_list backward(AutogradContext* context, variable_list grads) {
    RECORD_USER_SCOPE(part::kAttentionBackward);
    const auto saved = context->get_saved_variables();
    const auto shape = context->saved_data["shape"].toIntVector();
    const at::Tensor grad = grads[1].contiguous();
    const std::int64_t width = grad.size(1);
    at::Tensor grad_qkv = at::empty({grad.size(0), 3 * width}, grad.options());
    AT_DISPATCH_FLOATING_TYPES(grad.scalar_type(), "spike_attention_backward", [&] {
      auto arguments = arguments_of<scalar_t>(saved[0], width, shape);
      arguments.spikes = words_in(saved[1]);
      arguments.grad_spikes = grad.const_data_ptr<scalar_t>();
      arguments.grad_qkv = grad_qkv.data_ptr<scalar_t>();
      run(arguments, saved[0], kernels::kernels<scalar_t>().attention_backward, true);
    });
    return {grad_qkv, at::Tensor(), at::Tensor()};
  }

 private:
  template <typename Real, typename Kernel>
  static void run(const kernels::Attention<Real>& arguments, const at::Tensor& qkv, Kernel kernel,
                  bool backward) {
    kernels::for_even_ranges(
        cost_before_heads(arguments, qkv), [&](std::int64_t begin, std::int64_t end) {
          std::vector<Real> scratch(kernels::attention_scratch<Real>(
              arguments.steps, arguments.tokens, arguments.head_width, backward));
          auto mine = arguments;
          mine.scratch = scratch.data();
          kernel(mine, begin, end);
        });
  }
};

}  // namespace

Spikes spike_attention(const Spikes& qkv, std::int64_t steps, std::int64_t tokens,
                       std::int64_t heads, kernels::Surrogate surrogate) {
  if (!qkv.packed()) {
    const std::int64_t width = qkv.width();
    const at::Tensor spikes =
        spike_attention_reference(qkv.proxy.view({steps, -1, tokens, 3 * width}), heads, surrogate);
    return Spikes::of(spikes.view({-1, width}));
  }
  const std::vector<std::int64_t> shape{steps, tokens, heads, static_cast<std::int64_t>(surrogate)};
  const auto out = AttentionFunction::apply(qkv.proxy, qkv.bits, shape);
  return {out[1], out[0]};
}

at::Tensor spike_attention_reference(const at::Tensor& qkv, std::int64_t heads,
                                     kernels::Surrogate surrogate) {
  const auto steps = qkv.size(0), batch = qkv.size(1), tokens = qkv.size(2);
  const auto width = qkv.size(3) / 3, depth = width / heads;
  const auto parts = qkv.view({steps, batch, tokens, 3, heads, depth}).permute({3, 0, 1, 4, 2, 5});
  const at::Tensor q = parts[0], k = parts[1], v = parts[2];  // [T, B, A, M, d]
  const at::Tensor product = tokens < depth ? at::matmul(at::matmul(q, k.transpose(-1, -2)), v)
                                            : at::matmul(q, at::matmul(k.transpose(-1, -2), v));
  const at::Tensor current = (product * (1 / std::sqrt(double(depth))))
                                 .transpose(2, 3)
                                 .reshape({steps, batch, tokens, width});
  at::Tensor membrane = at::zeros_like(current[0]);
  std::vector<at::Tensor> spikes;
  for (std::int64_t t = 0; t < steps; ++t) {
    const at::Tensor u = charge(membrane, current[t]);
    spikes.push_back(fire(u, {kAttentionThreshold, surrogate}));
    membrane = reset(u, spikes.back());
  }
  return at::stack(spikes);  // [T, B, M, D]
}

}  // namespace laterna::model
