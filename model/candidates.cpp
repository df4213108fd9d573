#include "model/candidates.h"

#include <ATen/ATen.h>
#include <ATen/Dispatch.h>
#include <fmt/format.h>
#include <torch/csrc/autograd/custom_function.h>

#include <algorithm>

#include "model/kernels/cpu/parallel.h"
#include "model/probes/part.h"

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
  a.assignments = table.const_data_ptr<std::int32_t>();
  return a;
}

/// Returns for each token block the sum of `outputs` over its assignments, weighted by `gate` where
/// it is defined.
at::Tensor sum_assignments(const at::Tensor& outputs, const at::Tensor& gate,
                           const at::Tensor& table) {
  RECORD_USER_SCOPE(part::kAssignments);
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

/// The autograd function of gather(): adds the gradients of the gathered token blocks up at their
/// source. The bits are gathered outside of it.
class GatherFunction : public Function<GatherFunction> {
 public:
  static at::Tensor forward(AutogradContext* context, const at::Tensor& proxy,
                            const at::Tensor& table, std::int64_t rows, std::int64_t tokens) {
    context->save_for_backward({table});
    context->saved_data["tokens"] = tokens;
    return empty_proxy({rows, proxy.size(1)}, proxy.scalar_type());
  }
  static variable_list backward(AutogradContext* context, variable_list grads) {
    const at::Tensor table = context->get_saved_variables()[0];
    const std::int64_t width = grads[0].size(1), tokens = context->saved_data["tokens"].toInt();
    const at::Tensor grad = grads[0].contiguous().view({-1, tokens * width});
    return {sum_assignments(grad, at::Tensor(), table).view({-1, width}), at::Tensor(),
            at::Tensor(), at::Tensor()};
  }
};

class CombineFunction : public Function<CombineFunction> {
 public:
  static at::Tensor forward(AutogradContext* context, const at::Tensor& outputs,
                            const at::Tensor& gate, const at::Tensor& table) {
    context->save_for_backward({outputs, gate, table});
    return sum_assignments(outputs, gate, table);
  }
  static variable_list backward(AutogradContext* context, variable_list grads) {
    RECORD_USER_SCOPE(part::kAssignments);
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

/// Adds `path`, the assignments of one (candidate, sample) at each step, as a sequence unless the
/// pair has no assignment at any step.
void append_path(const std::vector<std::int32_t>& path, std::int64_t candidate,
                 std::vector<std::int32_t>& paths, std::vector<std::int32_t>& parameter_groups) {
  if (*std::max_element(path.begin(), path.end()) < 0) return;
  paths.insert(paths.end(), path.begin(), path.end());
  parameter_groups.push_back(static_cast<std::int32_t>(candidate));
}

Sequences sequences_of(const std::vector<std::int32_t>& paths,
                       const std::vector<std::int32_t>& parameter_groups, std::int64_t steps,
                       std::int64_t tokens) {
  return {at::tensor(paths, at::kInt).view({std::ssize(parameter_groups), steps}),
          at::tensor(parameter_groups, at::kInt), tokens};
}

}  // namespace

Assignments Assignments::of(const at::Tensor& mask, std::int64_t tokens) {
  const std::int64_t steps = mask.size(0), batch = mask.size(1), count = mask.size(2);
  const auto selected = mask.accessor<std::uint8_t, 3>();
  Assignments assignments;
  assignments.table = at::full({steps * batch, count}, -1, at::kInt);
  auto table = assignments.table.accessor<std::int32_t, 2>();
  std::vector<std::int64_t> source;
  std::vector<std::int32_t> paths, parameter_groups;
  assignments.offsets.push_back(0);
  for (std::int64_t n = 0; n < count; ++n) {
    for (std::int64_t t = 0; t < steps; ++t) {
      for (std::int64_t b = 0; b < batch; ++b) {
        if (!selected[t][b][n]) continue;
        table[t * batch + b][n] = static_cast<std::int32_t>(source.size());
        source.push_back(t * batch + b);
      }
    }
    assignments.offsets.push_back(std::ssize(source));
    for (std::int64_t b = 0; b < batch; ++b) {
      std::vector<std::int32_t> path;
      for (std::int64_t t = 0; t < steps; ++t) path.push_back(table[t * batch + b][n]);
      append_path(path, n, paths, parameter_groups);
    }
  }
  assignments.source = at::tensor(source, at::kLong);
  assignments.sequences = sequences_of(paths, parameter_groups, steps, tokens);
  return assignments;
}

StepAssignments StepAssignments::of(const at::Tensor& blocks, const at::Tensor& mask,
                                    std::int64_t tokens) {
  const std::int64_t steps = blocks.size(0), samples = blocks.size(1), count = mask.size(1);
  const auto place = blocks.accessor<std::int64_t, 2>();
  std::vector<std::vector<std::int32_t>> path(static_cast<std::size_t>(samples * count));
  StepAssignments all;
  std::int64_t first_block = 0, first_assignment = 0;
  for (std::int64_t t = 0; t < steps; ++t) {
    const std::int64_t here = blocks[t].ge(0).sum().item<std::int64_t>();
    const at::Tensor chosen = mask.narrow(0, first_block, here);
    const auto selected = chosen.accessor<std::uint8_t, 2>();
    Assignments assignments;
    assignments.table = at::full({here, count}, -1, at::kInt);
    auto table = assignments.table.accessor<std::int32_t, 2>();
    std::vector<std::int64_t> source;
    assignments.offsets.push_back(0);
    for (std::int64_t n = 0; n < count; ++n) {
      for (std::int64_t s = 0; s < samples; ++s) {
        const std::int64_t block = place[t][s];
        const bool routed = block >= 0 && selected[block][n];
        auto& steps_of = path[static_cast<std::size_t>(n * samples + s)];
        steps_of.push_back(routed ? static_cast<std::int32_t>(first_assignment + std::ssize(source))
                                  : -1);
        if (!routed) continue;
        table[block][n] = static_cast<std::int32_t>(source.size());
        source.push_back(block);
      }
      assignments.offsets.push_back(std::ssize(source));
    }
    assignments.source = at::tensor(source, at::kLong);
    all.steps.push_back(std::move(assignments));
    first_block += here;
    first_assignment += std::ssize(source);
  }
  std::vector<std::int32_t> paths, parameter_groups;
  for (std::int64_t i = 0; i < std::ssize(path); ++i) {
    append_path(path[i], i / samples, paths, parameter_groups);
  }
  all.sequences = sequences_of(paths, parameter_groups, steps, tokens);
  return all;
}

std::int64_t StepAssignments::count() const {
  std::int64_t total = 0;
  for (const auto& step : steps) total += step.offsets.back();
  return total;
}

Spikes gather(const Spikes& z, const Assignments& assignments, std::int64_t tokens) {
  RECORD_USER_SCOPE(part::kAssignments);
  const std::int64_t rows = assignments.source.size(0) * tokens;
  const auto rows_of = [&](const at::Tensor& all) {
    return all.view({-1, tokens * all.size(1)})
        .index_select(0, assignments.source.to(all.device()))
        .view({rows, all.size(1)});
  };
  if (!z.packed()) return {rows_of(z.proxy), at::Tensor()};
  return {GatherFunction::apply(z.proxy, assignments.table, rows, tokens), rows_of(z.bits)};
}

at::Tensor combine(const at::Tensor& outputs, const at::Tensor& gate,
                   const Assignments& assignments) {
  if (!has_kernels(outputs.device())) return combine_reference(outputs, gate, assignments);
  return CombineFunction::apply(outputs, gate, assignments.table);
}

at::Tensor combine_reference(const at::Tensor& outputs, const at::Tensor& gate,
                             const Assignments& assignments) {
  const std::int64_t count = gate.size(1);
  std::vector<at::Tensor> places;  // index of each assignment's weight in the flattened gates
  for (std::int64_t n = 0; n < count; ++n) {
    places.push_back(
        assignments.source.slice(0, assignments.offsets[n], assignments.offsets[n + 1]) * count +
        n);
  }
  const at::Tensor weight =
      gate.flatten().index_select(0, at::cat(places).to(gate.device())).unsqueeze(1);  // [V, 1]
  return at::zeros({gate.size(0), outputs.size(1)}, outputs.options())
      .index_add(0, assignments.source.to(outputs.device()), outputs * weight);  // eq 13
}

Candidates::Candidates(const Parameters& parameters, const ModelConfig& config, std::int64_t layer,
                       const Precision& precision)
    : layer_(layer),
      tokens_(config.tokens()),
      steps_(config.spiking_steps),
      held_(parameters.candidates_of(layer)),
      precision_(precision) {
  neuron_.surrogate = surrogate_from(config.surrogate);
  for (const auto n : held_) {
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

void Candidates::show(const Spikes& spikes, const Assignments* assignments,
                      const SpikeProbe& probe) const {
  if (!probe || spikes.rows() == 0) return;
  probe(layer_, spike_site::kHidden, spikes.values().view({-1, tokens_, spikes.width()}),
        assignments);
}

at::Tensor Candidates::forward(const Spikes& z, const LayerRouting& routing,
                               const SpikeProbe& probe) const {
  const std::int64_t width = z.width(), blocks = z.rows() / tokens_;
  const auto show_z = [&](const Assignments* assignments) {
    if (probe) probe(layer_, spike_site::kZ, z.values().view({-1, tokens_, width}), assignments);
  };
  if (!routing.mask.defined()) {
    show_z(nullptr);
    const at::Tensor hidden = spike_linear(z, up_, precision_);
    const Spikes spikes =
        neurons(hidden, Sequences::dense(steps_, blocks / steps_, tokens_));  // [T*B*M, 4D]
    show(spikes, nullptr, probe);
    return spike_linear(spikes, down_, precision_).view({blocks, tokens_ * width});
  }
  const LayerRouting here = of_held(routing);
  const Assignments assignments = Assignments::of(here.mask, tokens_);
  show_z(&assignments);
  const at::Tensor hidden = up(z, assignments);                  // [V*M, 4D]
  const Spikes spikes = neurons(hidden, assignments.sequences);  // [V*M, 4D]
  show(spikes, &assignments, probe);
  return down(spikes, here.probability.reshape({blocks, assignments.table.size(1)}), assignments);
}

LayerRouting Candidates::of_held(const LayerRouting& routing) const {
  if (std::ssize(held_) == routing.mask.size(2)) return routing;
  const at::Tensor columns = at::tensor(held_, at::kLong);
  LayerRouting here = routing;
  here.mask = routing.mask.index_select(2, columns);
  TORCH_CHECK(here.mask.sum().equal(routing.mask.sum()), "layer ", layer_,
              ": a sample selected a candidate that is not held here");
  here.probability = routing.probability.index_select(2, columns.to(routing.probability.device()));
  return here;
}

at::Tensor Candidates::up(const Spikes& z, const Assignments& assignments,
                          const at::Tensor& out) const {
  return spike_linear(gather(z, assignments, tokens_), grouped(up_, assignments), precision_, out);
}

Spikes Candidates::neurons(const at::Tensor& hidden, const Sequences& sequences) const {
  return norm_lif(hidden, norms_, sequences, neuron_);
}

at::Tensor Candidates::down(const Spikes& spikes, const at::Tensor& gate,
                            const Assignments& assignments) const {
  const at::Tensor outputs =
      spike_linear(spikes, grouped(down_, assignments), precision_);  // [V*M, D]
  return combine(outputs.view({assignments.source.size(0), tokens_ * outputs.size(1)}), gate,
                 assignments);
}

LinearGroups Candidates::grouped(const LinearGroups& weights,
                                 const Assignments& assignments) const {
  LinearGroups groups = weights;
  for (const auto offset : assignments.offsets) groups.offsets.push_back(offset * tokens_);
  return groups;
}

}  // namespace laterna::model
