#include "model/spiking/neuron.h"

#include <ATen/ATen.h>
#include <fmt/format.h>
#include <fmt/ranges.h>
#include <torch/csrc/autograd/custom_function.h>

#include <cmath>
#include <stdexcept>

namespace laterna::model {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::Function;
using torch::autograd::variable_list;

constexpr struct {
  const char* name;
  kernels::Surrogate surrogate;
} kSurrogates[] = {{"sigmoid", kernels::Surrogate::kSigmoid},
                   {"arctangent", kernels::Surrogate::kArctangent}};

class SpikeFunction : public Function<SpikeFunction> {
 public:
  static at::Tensor forward(AutogradContext* context, const at::Tensor& y, bool sigmoid) {
    context->save_for_backward({y});
    context->saved_data["sigmoid"] = sigmoid;
    return at::ge(y, 0).to(y.scalar_type());
  }
  static variable_list backward(AutogradContext* context, variable_list grads) {
    const at::Tensor y = context->get_saved_variables()[0];
    if (context->saved_data["sigmoid"].toBool()) {
      const at::Tensor s = at::sigmoid(4 * y);
      return {grads[0] * 4 * s * (1 - s), at::Tensor()};
    }
    return {grads[0] / (1 + (M_PI * y).square()), at::Tensor()};
  }
};

}  // namespace

std::vector<std::string> surrogate_names() {
  std::vector<std::string> names;
  for (const auto& known : kSurrogates) names.emplace_back(known.name);
  return names;
}

kernels::Surrogate surrogate_from(const std::string& name) {
  for (const auto& known : kSurrogates) {
    if (known.name == name) return known.surrogate;
  }
  throw std::invalid_argument(
      fmt::format("unknown surrogate {}; allowed: {}", name, fmt::join(surrogate_names(), ", ")));
}

at::Tensor spike(const at::Tensor& y, kernels::Surrogate surrogate) {
  return SpikeFunction::apply(y, surrogate == kernels::Surrogate::kSigmoid);
}

at::Tensor charge(const at::Tensor& v, const at::Tensor& current) {
  return v + (current - v) / kernels::kTau;  // eq 1: U = V + (I - (V - V_reset)) / tau, V_reset 0
}

at::Tensor fire(const at::Tensor& u, const NeuronOptions& options) {
  return spike(u - options.threshold, options.surrogate);  // eq 2: 1 where U >= V_th
}

at::Tensor reset(const at::Tensor& u, const at::Tensor& spikes) {
  return u * (1 - spikes.detach());  // eq 3: V_reset where the neuron fired, else U
}

}  // namespace laterna::model
