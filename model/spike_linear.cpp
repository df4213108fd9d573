#include "model/spike_linear.h"

#include <ATen/ATen.h>
#include <ATen/Dispatch.h>
#include <torch/csrc/autograd/custom_function.h>

#include "model/dense_product.h"
#include "model/kernels/parallel.h"
#include "model/spike_lists.h"

namespace laterna::model {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::Function;
using torch::autograd::variable_list;

at::Tensor rounded(const at::Tensor& x, bool bfloat16) {
  return bfloat16 ? x.to(at::kBFloat16).to(x.scalar_type()) : x;
}

/// Keeps a tensor out of autograd's sight among a function's arguments.
struct Destination {
  at::Tensor tensor;
};

/// Inputs: spikes, then the groups' weights and biases. Output: currents.
class SpikeLinearFunction : public Function<SpikeLinearFunction> {
 public:
  static at::Tensor forward(AutogradContext* context, const at::Tensor& spikes,
                            at::TensorList parameters, const std::vector<std::int64_t>& starts,
                            bool bfloat16, const Destination& destination) {
    const std::size_t groups = parameters.size() / 2;
    const SpikeLists lists = list_spikes(spikes);
    at::Tensor out = destination.tensor;
    if (!out.defined()) {
      out = at::empty({spikes.size(0), parameters[0].size(0)}, spikes.options());
    }
    for (std::size_t g = 0; g < groups; ++g) {
      const std::int64_t rows = starts[g + 1] - starts[g];
      if (rows == 0) continue;
      at::Tensor slice = out.narrow(0, starts[g], rows);
      const at::Tensor weight = rounded(parameters[g], bfloat16);
      if (lists.sparse()) {
        sum_listed(lists.rows(starts[g], rows), weight.t(), parameters[groups + g], slice);
      } else {
        dense_product(spikes.narrow(0, starts[g], rows), weight.t(), parameters[groups + g], slice);
      }
    }
    variable_list saved{spikes, lists.starts, lists.indices};
    saved.insert(saved.end(), parameters.begin(), parameters.begin() + groups);
    context->save_for_backward(saved);
    context->saved_data["starts"] = starts;
    context->saved_data["bfloat16"] = bfloat16;
    return out;
  }

  static variable_list backward(AutogradContext* context, variable_list grads) {
    const auto saved = context->get_saved_variables();
    const auto starts = context->saved_data["starts"].toIntVector();
    const bool bfloat16 = context->saved_data["bfloat16"].toBool();
    const at::Tensor& spikes = saved[0];
    const SpikeLists lists{saved[1], saved[2], spikes.size(1)};
    const at::Tensor grad = grads[0].contiguous();
    const at::Tensor product_grad = rounded(grad, bfloat16);
    at::Tensor grad_spikes = at::empty_like(spikes);
    variable_list grad_weights, grad_biases;
    for (std::size_t g = 0; g + 1 < starts.size(); ++g) {
      const std::int64_t rows = starts[g + 1] - starts[g];
      const at::Tensor& weight = saved[3 + g];
      if (rows == 0) {
        grad_weights.push_back(at::zeros_like(weight));
        grad_biases.push_back(at::zeros({weight.size(0)}, weight.options()));
        continue;
      }
      const at::Tensor grad_rows = product_grad.narrow(0, starts[g], rows);
      at::Tensor slice = grad_spikes.narrow(0, starts[g], rows);
      dense_product(grad_rows, rounded(weight, bfloat16), at::Tensor(), slice);
      if (lists.sparse()) {
        at::Tensor turned = at::empty({weight.size(1), weight.size(0)}, weight.options());
        sum_listed(lists.rows(starts[g], rows).turned(), grad_rows, at::Tensor(), turned);
        grad_weights.push_back(turned.t().contiguous());
      } else {
        grad_weights.push_back(at::mm(grad_rows.t(), spikes.narrow(0, starts[g], rows)));
      }
      grad_biases.push_back(grad.narrow(0, starts[g], rows).sum(0));
    }
    variable_list result{grad_spikes};
    result.insert(result.end(), grad_weights.begin(), grad_weights.end());
    result.insert(result.end(), grad_biases.begin(), grad_biases.end());
    result.resize(result.size() + 3);  // starts, bfloat16, destination
    return result;
  }
};

}  // namespace

at::Tensor spike_linear(const at::Tensor& spikes, const LinearGroups& groups,
                        const Precision& precision, const at::Tensor& out) {
  std::vector<at::Tensor> parameters = groups.weights;
  parameters.insert(parameters.end(), groups.biases.begin(), groups.biases.end());
  std::vector<std::int64_t> starts = groups.starts;
  if (starts.empty()) starts = {0, spikes.size(0)};
  return SpikeLinearFunction::apply(spikes, at::TensorList(parameters), starts,
                                    precision.bfloat16_products, Destination{out});
}

}  // namespace laterna::model
