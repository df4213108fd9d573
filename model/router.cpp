#include "model/router.h"

#include <ATen/ATen.h>
#include <ATen/Dispatch.h>
#include <fmt/format.h>
#include <torch/csrc/autograd/custom_function.h>

#include <algorithm>
#include <numeric>

#include "model/spiking/neuron.h"

namespace laterna::model {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::Function;
using torch::autograd::variable_list;

template <typename Real>
const Real* pointer(const at::Tensor& tensor) {
  return tensor.defined() ? tensor.const_data_ptr<Real>() : nullptr;
}

template <typename Real>
kernels::Routing<Real> arguments_of(at::TensorList inputs, std::int64_t steps, int surrogate) {
  kernels::Routing<Real> a{};
  a.steps = steps;
  a.batch = inputs[0].size(0);
  a.width = inputs[0].size(1);
  a.candidates = inputs[1].size(0);
  a.embedding = pointer<Real>(inputs[0]);
  a.weight = pointer<Real>(inputs[1]);
  a.bias = pointer<Real>(inputs[2]);
  a.gamma = pointer<Real>(inputs[3]);
  a.aggregation = pointer<Real>(inputs[4]);
  a.threshold = pointer<Real>(inputs[5]);
  a.surrogate = static_cast<kernels::Surrogate>(surrogate);
  return a;
}

/// The autograd function of Router::route. Inputs: SiLU(e), weight, bias, gamma, Lambda, threshold
/// (the last three may be undefined). Outputs: P, and lhat in float64, which carries no gradient.
class RoutingFunction : public Function<RoutingFunction> {
 public:
  static variable_list forward(AutogradContext* context, const at::Tensor& embedding,
                               const at::Tensor& weight, const at::Tensor& bias,
                               const std::optional<at::Tensor>& gamma,
                               const std::optional<at::Tensor>& aggregation,
                               const std::optional<at::Tensor>& threshold, std::int64_t steps,
                               std::int64_t surrogate) {
    const std::int64_t batch = embedding.size(0), count = weight.size(0);
    at::Tensor logits = at::empty({batch, count}, embedding.options().dtype(at::kDouble));
    at::Tensor corrected = at::empty({steps, batch, count}, logits.options());
    at::Tensor probability = at::empty({steps, batch, count}, embedding.options());
    const at::Tensor none;
    const variable_list inputs{embedding,
                               weight,
                               bias,
                               gamma.value_or(none),
                               aggregation.value_or(none),
                               threshold.value_or(none)};
    AT_DISPATCH_FLOATING_TYPES(embedding.scalar_type(), "routing", [&] {
      std::vector<double> scratch((2 * steps + 5) * count);
      auto arguments = arguments_of<scalar_t>(inputs, steps, surrogate);
      arguments.logits = logits.data_ptr<double>();
      arguments.corrected = corrected.data_ptr<double>();
      arguments.probability = probability.data_ptr<scalar_t>();
      arguments.scratch = scratch.data();
      kernels::kernels<scalar_t>().routing_forward(arguments, 0, batch);
    });
    variable_list saved = inputs;
    saved.push_back(logits);
    saved.push_back(probability);
    context->save_for_backward(saved);
    context->saved_data["steps"] = steps;
    context->saved_data["surrogate"] = surrogate;
    context->mark_non_differentiable({corrected});
    return {probability, corrected};
  }

  static variable_list backward(AutogradContext* context, variable_list grads) {
    const auto saved = context->get_saved_variables();
    const auto steps = context->saved_data["steps"].toInt();
    const auto real = saved[0].scalar_type();
    const at::Tensor grad = grads[0].contiguous();
    at::Tensor grad_embedding = at::empty_like(saved[0]);
    const auto wide = [](const at::Tensor& like) {
      return like.defined() ? at::zeros_like(like, like.options().dtype(at::kDouble)) : like;
    };
    variable_list sums;
    for (int i = 1; i < 6; ++i) sums.push_back(wide(saved[i]));
    AT_DISPATCH_FLOATING_TYPES(real, "routing_backward", [&] {
      const auto total = [&](int i) {
        return sums[i].defined() ? sums[i].data_ptr<double>() : nullptr;
      };
      auto a = arguments_of<scalar_t>(saved, steps, context->saved_data["surrogate"].toInt());
      std::vector<double> scratch((2 * steps + 5) * a.candidates);
      a.logits = const_cast<double*>(saved[6].const_data_ptr<double>());
      a.probability = const_cast<scalar_t*>(saved[7].const_data_ptr<scalar_t>());
      a.grad_probability = grad.const_data_ptr<scalar_t>();
      a.grad_embedding = grad_embedding.data_ptr<scalar_t>();
      a.grad_weight = total(0);
      a.grad_bias = total(1);
      a.grad_gamma = total(2);
      a.grad_aggregation = total(3);
      a.grad_threshold = total(4);
      a.scratch = scratch.data();
      kernels::kernels<scalar_t>().routing_backward(a, 0, a.batch);
    });
    variable_list result{grad_embedding};
    for (auto& sum : sums) result.push_back(sum.defined() ? sum.to(real) : sum);
    result.resize(8);
    return result;
  }
};

}  // namespace

Router::Router(const Parameters& parameters, const ModelConfig& config, std::int64_t layer)
    : layer_(layer),
      steps_(config.spiking_steps),
      selected_(config.selected),
      surrogate_(surrogate_from(config.surrogate)) {
  const std::string name = fmt::format("blocks.{}.router.", layer);
  weight_ = parameters[name + "select.weight"];
  bias_ = parameters[name + "select.bias"];
  if (config.lateral) {
    gamma_ = parameters[name + "lateral.gamma"];
    aggregation_ = parameters[name + "lateral.aggregation"];
    threshold_ = parameters[name + "lateral.threshold"];
  }
}

LayerRouting Router::route(const at::Tensor& activated) const {
  const auto host = [](const at::Tensor& t) { return t.cpu(); };
  const auto lateral = [](const at::Tensor& t) {
    return t.defined() ? std::optional(t.cpu()) : std::nullopt;
  };
  const auto out = RoutingFunction::apply(
      host(activated).contiguous(), host(weight_), host(bias_), lateral(gamma_),
      lateral(aggregation_), lateral(threshold_), steps_, static_cast<std::int64_t>(surrogate_));
  return {layer_, out[0].to(activated.device()), largest(out[1], selected_)};
}

at::Tensor largest(const at::Tensor& corrected, std::int64_t k) {
  const std::int64_t count = corrected.size(-1), rows = corrected.numel() / count;
  at::Tensor mask = at::zeros(corrected.sizes(), at::kByte);
  const double* value = corrected.const_data_ptr<double>();
  auto* chosen = mask.data_ptr<std::uint8_t>();
  std::vector<std::int64_t> order(count);
  for (std::int64_t row = 0; row < rows; ++row, value += count, chosen += count) {
    std::iota(order.begin(), order.end(), 0);
    std::stable_sort(order.begin(), order.end(),
                     [&](std::int64_t a, std::int64_t b) { return value[a] > value[b]; });
    for (std::int64_t i = 0; i < k; ++i) chosen[order[i]] = 1;  // eq 12
  }
  return mask;
}

Routing repeat(const Routing& table, std::int64_t i, std::int64_t batch) {
  Routing out;
  for (const auto& layer : table) {
    const auto row = [&](const at::Tensor& all) {
      const auto one = all.narrow(1, i, 1);  // [T, 1, N]
      return one.expand({all.size(0), batch, all.size(2)}).contiguous();
    };
    out.push_back({layer.layer, row(layer.probability), row(layer.mask)});
  }
  return out;
}

}  // namespace laterna::model
