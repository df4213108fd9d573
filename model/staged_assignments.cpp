#include "model/staged_assignments.h"

#include <ATen/ATen.h>
#include <torch/csrc/autograd/autograd.h>

namespace laterna::model {
namespace {

at::Tensor leaf(const at::Tensor& tensor) { return tensor.detach().requires_grad_(); }

void add_to(at::Tensor& sum, const at::Tensor& term) {
  if (!term.defined()) return;
  sum.defined() ? static_cast<void>(sum.add_(term)) : static_cast<void>(sum = term);
}

}  // namespace

StagedAssignments::StagedAssignments(const Candidates& held, StepAssignments assignments)
    : held_(held),
      assignments_(std::move(assignments)),
      offsets_{0},
      parts_(assignments_.steps.size()) {
  for (const auto& part : assignments_.steps) {
    offsets_.push_back(offsets_.back() + part.offsets.back() * held.tokens());
  }
}

at::Tensor StagedAssignments::rows(const at::Tensor& all, std::int64_t part) const {
  return all.detach().slice(0, offsets_[part], offsets_[part + 1]);
}

void StagedAssignments::up(std::int64_t part, const Spikes& z) {
  if (!hidden_.defined()) {
    hidden_ = at::empty({offsets_.back(), held_.hidden()}, z.proxy.options().requires_grad(false));
  }
  Part& p = parts_[part];
  p.z = z.leaf();
  p.currents = held_.up(p.z, assignments_.steps[part], rows(hidden_, part).detach());
}

void StagedAssignments::neurons() {
  hidden_ = leaf(hidden_);
  spikes_ = held_.neurons(hidden_, assignments_.sequences);
}

at::Tensor StagedAssignments::down(std::int64_t part, const at::Tensor& gate) {
  Part& p = parts_[part];
  p.spikes = spikes_.slice(offsets_[part], offsets_[part + 1] - offsets_[part]).leaf();
  p.gate = leaf(gate);
  p.sums = held_.down(p.spikes, p.gate, assignments_.steps[part]);
  return p.sums.detach();
}

/// Returns the gradient of inputs[0], stores that of inputs[1] in `second` unless null, and adds
/// those of the candidates' parameters to `parameters`. Frees the graph of `output`.
at::Tensor StagedAssignments::backward(at::Tensor& output, const at::Tensor& grad,
                                       at::TensorList inputs, std::vector<at::Tensor>& parameters,
                                       at::Tensor* second) {
  std::vector<at::Tensor> all = inputs.vec();
  const auto of_candidates = held_.parameters();
  all.insert(all.end(), of_candidates.begin(), of_candidates.end());
  const auto result =
      torch::autograd::grad({output}, all, {grad}, {}, false, /*allow_unused=*/true);
  output.reset();
  parameters.resize(of_candidates.size());
  for (std::size_t i = 0; i < parameters.size(); ++i) {
    add_to(parameters[i], result[inputs.size() + i]);
  }
  if (second) *second = result[1];
  return result[0];
}

at::Tensor StagedAssignments::down_backward(std::int64_t part, const at::Tensor& grad,
                                            std::vector<at::Tensor>& parameters) {
  Part& p = parts_[part];
  at::Tensor grad_gate;
  const at::Tensor grad_spikes =
      backward(p.sums, grad, {p.spikes.proxy, p.gate}, parameters, &grad_gate);
  if (parts() == 1) {
    grad_ = grad_spikes;
  } else {
    if (!grad_.defined()) grad_ = at::empty(spikes_.proxy.sizes(), grad_spikes.options());
    rows(grad_, part).copy_(grad_spikes);
  }
  p.spikes = {};
  return grad_gate;
}

void StagedAssignments::neurons_backward(std::vector<at::Tensor>& parameters) {
  grad_ = backward(spikes_.proxy, grad_, {hidden_}, parameters);
  hidden_.reset();
}

at::Tensor StagedAssignments::up_backward(std::int64_t part, std::vector<at::Tensor>& parameters) {
  Part& p = parts_[part];
  return backward(p.currents, rows(grad_, part), {p.z.proxy}, parameters).contiguous();
}

}  // namespace laterna::model
