#include "model/attention.h"

#include <ATen/ATen.h>
#include <ATen/Dispatch.h>
#include <torch/csrc/autograd/custom_function.h>

#include <cmath>
#include <vector>

#include "model/kernels/parallel.h"
#include "model/lif.h"

namespace laterna::model {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::Function;
using torch::autograd::variable_list;

template <typename Real>
kernels::Attention<Real> arguments_of(const at::Tensor& qkv, std::int64_t heads, int surrogate) {
  kernels::Attention<Real> a{};
  a.steps = qkv.size(0);
  a.batch = qkv.size(1);
  a.tokens = qkv.size(2);
  a.heads = heads;
  a.head_width = qkv.size(3) / 3 / heads;
  a.scale = Real(1 / std::sqrt(double(a.head_width)));
  a.threshold = Real(kAttentionThreshold);
  a.surrogate = static_cast<kernels::Surrogate>(surrogate);
  a.qkv = qkv.const_data_ptr<Real>();
  return a;
}

class AttentionFunction : public Function<AttentionFunction> {
 public:
  static at::Tensor forward(AutogradContext* context, const at::Tensor& qkv, std::int64_t heads,
                            std::int64_t surrogate) {
    auto shape = qkv.sizes().vec();
    shape.back() /= 3;
    at::Tensor current = at::empty(shape, qkv.options());
    at::Tensor spikes = at::empty(shape, qkv.options());
    AT_DISPATCH_FLOATING_TYPES(qkv.scalar_type(), "spike_attention", [&] {
      auto arguments = arguments_of<scalar_t>(qkv, heads, surrogate);
      arguments.current = current.data_ptr<scalar_t>();
      arguments.spikes = spikes.data_ptr<scalar_t>();
      run<scalar_t>(arguments, kernels::kernels<scalar_t>().attention_forward);
    });
    context->save_for_backward({qkv, current, spikes});
    context->saved_data["heads"] = heads;
    context->saved_data["surrogate"] = surrogate;
    return spikes;
  }

  static variable_list backward(AutogradContext* context, variable_list grads) {
    const auto saved = context->get_saved_variables();
    const at::Tensor grad = grads[0].contiguous();
    at::Tensor grad_qkv = at::empty_like(saved[0]);
    AT_DISPATCH_FLOATING_TYPES(grad.scalar_type(), "spike_attention_backward", [&] {
      auto arguments = arguments_of<scalar_t>(saved[0], context->saved_data["heads"].toInt(),
                                              context->saved_data["surrogate"].toInt());
      arguments.current = const_cast<scalar_t*>(saved[1].const_data_ptr<scalar_t>());
      arguments.spikes = const_cast<scalar_t*>(saved[2].const_data_ptr<scalar_t>());
      arguments.grad_spikes = grad.const_data_ptr<scalar_t>();
      arguments.grad_qkv = grad_qkv.data_ptr<scalar_t>();
      run<scalar_t>(arguments, kernels::kernels<scalar_t>().attention_backward);
    });
    return {grad_qkv, at::Tensor(), at::Tensor()};
  }

 private:
  template <typename Real, typename Kernel>
  static void run(const kernels::Attention<Real>& arguments, Kernel kernel) {
    kernels::for_ranges(
        arguments.batch * arguments.heads, [&](std::int64_t, std::int64_t begin, std::int64_t end) {
          std::vector<Real> scratch(
              kernels::attention_scratch(arguments.steps, arguments.tokens, arguments.head_width));
          auto mine = arguments;
          mine.scratch = scratch.data();
          kernel(mine, begin, end);
        });
  }
};

}  // namespace

at::Tensor spike_attention(const at::Tensor& qkv, std::int64_t heads,
                           kernels::Surrogate surrogate) {
  if (!qkv.is_cpu()) return spike_attention_reference(qkv, heads, surrogate);
  return AttentionFunction::apply(qkv, heads, static_cast<std::int64_t>(surrogate));
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
    const at::Tensor u = membrane + (current[t] - membrane) / 2;
    spikes.push_back(spike(u - kAttentionThreshold, surrogate));
    membrane = u * (1 - spikes.back().detach());
  }
  return at::stack(spikes);  // [T, B, M, D]
}

}  // namespace laterna::model
