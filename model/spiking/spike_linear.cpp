#include "model/spiking/spike_linear.h"

#include <ATen/ATen.h>
#include <torch/csrc/autograd/custom_function.h>

#include "model/probes/part.h"
#include "model/spiking/dense_product.h"
#include "model/spiking/spike_product.h"

namespace laterna::model {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::Function;
using torch::autograd::variable_list;

at::Tensor rounded(const at::Tensor& x, bool bfloat16) {
  return bfloat16 ? x.to(at::kBFloat16).to(x.scalar_type()) : x;
}

/// Hides a tensor from autograd among the arguments of a Function.
struct Destination {
  at::Tensor tensor;
};

/// The autograd function of spike_linear. Inputs: gradient proxy and bits (if any) of the spikes,
/// the weights of all groups, then their biases. Output: currents.
class SpikeLinearFunction : public Function<SpikeLinearFunction> {
 public:
  static at::Tensor forward(AutogradContext* context, const at::Tensor& proxy,
                            const std::optional<at::Tensor>& bits, at::TensorList parameters,
                            const std::vector<std::int64_t>& offsets, bool bfloat16,
                            const Destination& destination) {
    RECORD_USER_SCOPE(part::kProduct);
    const Spikes spikes{proxy, bits.value_or(at::Tensor())};
    const std::size_t groups = parameters.size() / 2;
    at::Tensor out = destination.tensor;
    if (!out.defined()) {
      out = at::empty({spikes.rows(), parameters[0].size(0)}, proxy.options());
    }
    for (std::size_t g = 0; g < groups; ++g) {
      const std::int64_t rows = offsets[g + 1] - offsets[g];
      if (rows == 0) continue;
      at::Tensor slice = out.narrow(0, offsets[g], rows);
      const Spikes mine = spikes.slice(offsets[g], rows);
      const at::Tensor weight = rounded(parameters[g], bfloat16), &bias = parameters[groups + g];
      bits ? spike_product(mine, weight, bias, slice, crossover(weight.scalar_type()))
           : static_cast<void>(at::addmm_out(slice, bias, mine.proxy, weight.t()));
    }
    variable_list saved{bits ? *bits : proxy};
    saved.insert(saved.end(), parameters.begin(), parameters.begin() + groups);
    context->save_for_backward(saved);
    context->saved_data["in bits"] = bits.has_value();
    context->saved_data["offsets"] = offsets;
    context->saved_data["bfloat16"] = bfloat16;
    return out;
  }

  static variable_list backward(AutogradContext* context, variable_list grads) {
    const auto saved = context->get_saved_variables();
    const auto offsets = context->saved_data["offsets"].toIntVector();
    const bool bfloat16 = context->saved_data["bfloat16"].toBool();
    const bool in_bits = context->saved_data["in bits"].toBool();
    const at::Tensor grad = grads[0].contiguous();
    const at::Tensor product_grad = rounded(grad, bfloat16);
    const std::int64_t inputs = saved[1].size(1);
    const Spikes spikes = in_bits ? Spikes::of_bits(saved[0], inputs, grad.scalar_type())
                                  : Spikes{saved[0], at::Tensor()};
    const bool whole = offsets.size() == 2 && offsets[1] > 0;  // a single group gives all rows
    at::Tensor grad_spikes =
        whole ? at::Tensor() : at::empty({spikes.rows(), inputs}, grad.options());
    variable_list grad_weights, grad_biases;
    for (std::size_t g = 0; g + 1 < offsets.size(); ++g) {
      const std::int64_t rows = offsets[g + 1] - offsets[g];
      const at::Tensor& weight = saved[1 + g];
      if (rows == 0) {
        grad_weights.push_back(at::zeros_like(weight));
        grad_biases.push_back(at::zeros({weight.size(0)}, weight.options()));
        continue;
      }
      const at::Tensor grad_rows = product_grad.narrow(0, offsets[g], rows);
      {
        RECORD_USER_SCOPE(part::kSpikeGradient);
        const at::Tensor product = dense_product(grad_rows, rounded(weight, bfloat16));
        if (whole) {
          grad_spikes = product;
        } else {
          grad_spikes.narrow(0, offsets[g], rows).copy_(product);
        }
      }
      RECORD_USER_SCOPE(part::kWeightGradient);
      const Spikes mine = spikes.slice(offsets[g], rows);
      grad_weights.push_back(
          in_bits ? spike_weight_gradient(mine, grad_rows, crossover(grad.scalar_type()))
                  : at::mm(grad_rows.t(), mine.proxy));
      grad_biases.push_back(grad.narrow(0, offsets[g], rows).sum(0));
    }
    variable_list result{grad_spikes, at::Tensor()};
    result.insert(result.end(), grad_weights.begin(), grad_weights.end());
    result.insert(result.end(), grad_biases.begin(), grad_biases.end());
    result.resize(result.size() + 3);  // no gradients for offsets, bfloat16, destination
    return result;
  }
};

}  // namespace

at::Tensor spike_linear(const Spikes& spikes, const LinearGroups& groups,
                        const Precision& precision, const at::Tensor& out) {
  std::vector<at::Tensor> parameters = groups.weights;
  parameters.insert(parameters.end(), groups.biases.begin(), groups.biases.end());
  std::vector<std::int64_t> offsets = groups.offsets;
  if (offsets.empty()) offsets = {0, spikes.rows()};
  return SpikeLinearFunction::apply(
      spikes.proxy, spikes.packed() ? std::optional(spikes.bits) : std::nullopt,
      at::TensorList(parameters), offsets, precision.bfloat16_products, Destination{out});
}

}  // namespace laterna::model
