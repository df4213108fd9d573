#include "model/candidates.h"

#include <ATen/ATen.h>
#include <ATen/Dispatch.h>
#include <fmt/format.h>
#include <torch/csrc/autograd/custom_function.h>

#include <algorithm>

#include "model/kernels/parallel.h"

namespace laterna::model {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::Function;
using torch::autograd::variable_list;

template <typename Real>
kernels::Combine<Real> arguments_of(const at::Tensor& table, std::int64_t size) {
  kernels::Combine<Real> a{};
  a.candidates = table.size(1);
  a.size = size;
  a.visits = table.const_data_ptr<std::int32_t>();
  return a;
}

/// sums[i] = sum of outputs over the visits of block i, weighted by gate where it is defined.
at::Tensor sum_visits(const at::Tensor& outputs, const at::Tensor& gate, const at::Tensor& table) {
  at::Tensor sum = at::empty({table.size(0), outputs.size(1)}, outputs.options());
  AT_DISPATCH_FLOATING_TYPES(outputs.scalar_type(), "combine", [&] {
    auto a = arguments_of<scalar_t>(table, outputs.size(1));
    a.gate = gate.defined() ? gate.const_data_ptr<scalar_t>() : nullptr;
    a.outputs = outputs.const_data_ptr<scalar_t>();
    a.sum = sum.data_ptr<scalar_t>();
    kernels::for_ranges(table.size(0), [&](std::int64_t, std::int64_t begin, std::int64_t end) {
      kernels::kernels<scalar_t>().combine_forward(a, begin, end);
    });
  });
  return sum;
}

class GatherFunction : public Function<GatherFunction> {
 public:
  static at::Tensor forward(AutogradContext* context, const at::Tensor& z, const at::Tensor& source,
                            const at::Tensor& table) {
    context->save_for_backward({table});
    return z.index_select(0, source);
  }
  static variable_list backward(AutogradContext* context, variable_list grads) {
    const at::Tensor table = context->get_saved_variables()[0];
    return {sum_visits(grads[0].contiguous(), at::Tensor(), table), at::Tensor(), at::Tensor()};
  }
};

class CombineFunction : public Function<CombineFunction> {
 public:
  static at::Tensor forward(AutogradContext* context, const at::Tensor& outputs,
                            const at::Tensor& gate, const at::Tensor& table) {
    context->save_for_backward({outputs, gate, table});
    return sum_visits(outputs, gate, table);
  }
  static variable_list backward(AutogradContext* context, variable_list grads) {
    const auto saved = context->get_saved_variables();
    const at::Tensor &outputs = saved[0], &gate = saved[1], &table = saved[2];
    const at::Tensor grad = grads[0].contiguous();
    at::Tensor grad_outputs = at::empty_like(outputs), grad_gate = at::empty_like(gate);
    AT_DISPATCH_FLOATING_TYPES(grad.scalar_type(), "combine_backward", [&] {
      auto a = arguments_of<scalar_t>(table, outputs.size(1));
      a.gate = gate.const_data_ptr<scalar_t>();
      a.outputs = outputs.const_data_ptr<scalar_t>();
      a.grad_sum = grad.const_data_ptr<scalar_t>();
      a.grad_outputs = grad_outputs.data_ptr<scalar_t>();
      a.grad_gate = grad_gate.data_ptr<scalar_t>();
      kernels::for_ranges(table.size(0), [&](std::int64_t, std::int64_t begin, std::int64_t end) {
        kernels::kernels<scalar_t>().combine_backward(a, begin, end);
      });
    });
    return {grad_outputs, grad_gate, at::Tensor()};
  }
};

}  // namespace

Visits Visits::of(const at::Tensor& mask, std::int64_t tokens) {
  const std::int64_t steps = mask.size(0), batch = mask.size(1);
  return among(at::arange(steps * batch, at::kLong).view({steps, batch}), mask.flatten(0, 1),
               tokens);
}

Visits Visits::among(const at::Tensor& blocks, const at::Tensor& mask, std::int64_t tokens) {
  const std::int64_t steps = blocks.size(0), samples = blocks.size(1), count = mask.size(1);
  const auto selected = mask.accessor<std::uint8_t, 2>();
  const auto block = blocks.accessor<std::int64_t, 2>();
  Visits visits;
  visits.table = at::full({mask.size(0), count}, -1, at::kInt);
  auto table = visits.table.accessor<std::int32_t, 2>();
  std::vector<std::int64_t> source;
  std::vector<std::int32_t> paths, sets;
  visits.starts.push_back(0);
  for (std::int64_t n = 0; n < count; ++n) {
    for (std::int64_t t = 0; t < steps; ++t) {
      for (std::int64_t b = 0; b < samples; ++b) {
        if (block[t][b] < 0 || !selected[block[t][b]][n]) continue;
        table[block[t][b]][n] = static_cast<std::int32_t>(source.size());
        source.push_back(block[t][b]);
      }
    }
    visits.starts.push_back(static_cast<std::int64_t>(source.size()));
    for (std::int64_t b = 0; b < samples; ++b) {
      std::vector<std::int32_t> path;
      for (std::int64_t t = 0; t < steps; ++t) {
        path.push_back(block[t][b] < 0 ? -1 : table[block[t][b]][n]);
      }
      if (*std::max_element(path.begin(), path.end()) < 0) continue;
      paths.insert(paths.end(), path.begin(), path.end());
      sets.push_back(static_cast<std::int32_t>(n));
    }
  }
  visits.source = at::tensor(source, at::kLong);
  visits.sequences = {at::tensor(paths, at::kInt).view({std::ssize(sets), steps}),
                      at::tensor(sets, at::kInt), tokens};
  return visits;
}

at::Tensor gather(const at::Tensor& z, const Visits& visits) {
  if (!z.is_cpu()) return z.index_select(0, visits.source.to(z.device()));
  return GatherFunction::apply(z, visits.source, visits.table);
}

at::Tensor combine(const at::Tensor& outputs, const at::Tensor& gate, const Visits& visits) {
  if (outputs.is_cpu()) return CombineFunction::apply(outputs, gate, visits.table);
  const at::Tensor visited = visits.table.t().ge(0).to(gate.device());  // [N, blocks], visit order
  const at::Tensor weight = gate.t().masked_select(visited).unsqueeze(1);  // [V, 1]
  return at::zeros({gate.size(0), outputs.size(1)}, outputs.options())
      .index_add(0, visits.source.to(outputs.device()), outputs * weight);
}

Candidates::Candidates(const Parameters& parameters, const ModelConfig& config, std::int64_t layer,
                       const Precision& precision, const std::vector<std::int64_t>& held)
    : layer_(layer), tokens_(config.tokens()), precision_(precision) {
  neuron_.surrogate = surrogate_from(config.surrogate);
  for (const auto n : held) {
    const std::string name = fmt::format("blocks.{}.candidates.{}.", layer, n);
    up_.weights.push_back(parameters[name + "up.weight"]);
    up_.biases.push_back(parameters[name + "up.bias"]);
    norms_.weights.push_back(parameters[name + "norm.weight"]);
    norms_.biases.push_back(parameters[name + "norm.bias"]);
    down_.weights.push_back(parameters[name + "down.weight"]);
    down_.biases.push_back(parameters[name + "down.bias"]);
  }
}

std::vector<std::vector<at::Tensor>*> Candidates::parameter_lists() {
  return {&up_.weights,   &up_.biases,    &norms_.weights,
          &norms_.biases, &down_.weights, &down_.biases};
}

std::vector<at::Tensor> Candidates::parameters() const {
  std::vector<at::Tensor> all;
  Candidates copy = *this;
  for (const auto* list : copy.parameter_lists()) all.insert(all.end(), list->begin(), list->end());
  return all;
}

Candidates Candidates::with_parameters(at::TensorList parameters) const {
  Candidates copy = *this;
  std::size_t next = 0;
  for (auto* list : copy.parameter_lists()) {
    for (auto& tensor : *list) tensor = parameters[next++];
  }
  return copy;
}

at::Tensor Candidates::perceptron(const at::Tensor& rows, const std::vector<std::int64_t>& starts,
                                  const Sequences& sequences, const Visits* visits,
                                  const SpikeProbe& probe) const {
  LinearGroups up = up_, down = down_;
  up.starts = down.starts = starts;
  const at::Tensor hidden = spike_linear(rows, up, precision_);            // [V*M, 4D]
  const at::Tensor spikes = norm_lif(hidden, norms_, sequences, neuron_);  // [V*M, 4D]
  if (probe) {
    probe(layer_, spike_site::kHidden, spikes.view({-1, tokens_, spikes.size(1)}), visits);
  }
  return spike_linear(spikes, down, precision_);  // [V*M, D]
}

at::Tensor Candidates::forward(const at::Tensor& z, const LayerRouting* routing,
                               const SpikeProbe& probe) const {
  const std::int64_t width = z.size(3);
  const auto show_z = [&](const Visits* visits) {
    if (probe) probe(layer_, spike_site::kZ, z.view({-1, tokens_, width}), visits);
  };
  if (!routing) {
    show_z(nullptr);
    const auto all = Sequences::dense(z.size(0), z.size(1), tokens_);
    return perceptron(z.view({-1, width}), {}, all, nullptr, probe).view(z.sizes());
  }
  const Visits visits = Visits::of(routing->mask, tokens_);
  show_z(&visits);
  const std::int64_t blocks = z.size(0) * z.size(1);
  return visit(z.view({blocks, tokens_ * width}),
               routing->probability.reshape({blocks, visits.table.size(1)}), visits, probe)
      .view(z.sizes());  // [T, B, M, D]
}

at::Tensor Candidates::visit(const at::Tensor& z, const at::Tensor& gate, const Visits& visits,
                             const SpikeProbe& probe) const {
  std::vector<std::int64_t> rows;
  for (const auto start : visits.starts) rows.push_back(start * tokens_);
  const at::Tensor inputs = gather(z, visits).view({-1, z.size(1) / tokens_});  // [V*M, D]
  const at::Tensor outputs =
      perceptron(inputs, rows, visits.sequences, &visits, probe);  // [V*M, D]
  return combine(outputs.view({visits.source.size(0), z.size(1)}), gate, visits);
}

}  // namespace laterna::model
