#include "model/expert_parallel.h"

#include <ATen/ATen.h>
#include <torch/csrc/autograd/custom_function.h>

#include <map>

#include "model/staged_assignments.h"

namespace laterna::model {
namespace {

using dist::Exchange;
using dist::LayerPlan;
using dist::Transfer;
using torch::autograd::AutogradContext;
using torch::autograd::Function;
using torch::autograd::variable_list;

// T spiking steps, B samples of this rank, S token blocks sent, R token blocks received, N
// candidates, H candidates held by this rank.

at::Tensor indices(const std::vector<std::int64_t>& numbers, const at::Tensor& like) {
  return at::tensor(numbers, at::kLong).to(like.device());
}

/// Returns the assignments of the R received token blocks, step by step.
StepAssignments remote_assignments(const LayerPlan& plan, std::int64_t tokens) {
  const auto steps = static_cast<std::int64_t>(plan.receive_rows.size());
  const auto rows = static_cast<std::int64_t>(plan.received.size());
  std::map<std::int64_t, std::int64_t> order;  // sample number in the micro-batch -> column
  for (const auto block : plan.received) order.emplace(block % plan.samples, order.size());
  const at::Tensor blocks = at::full({steps, std::ssize(order)}, -1, at::kLong);
  auto place = blocks.accessor<std::int64_t, 2>();
  std::vector<std::int64_t> next(static_cast<std::size_t>(steps));
  for (const auto block : plan.received) {
    const std::int64_t step = block / plan.samples;
    place[step][order.at(block % plan.samples)] = next[step]++;
  }
  const at::Tensor mask = at::empty({rows, std::ssize(plan.held)}, at::kByte);
  std::copy(plan.remote.begin(), plan.remote.end(), mask.mutable_data_ptr<std::uint8_t>());
  return StepAssignments::of(blocks, mask, tokens);
}

/// Returns the local assignments of all steps, as a single part.
StepAssignments local_assignments(const LayerPlan& plan, std::int64_t batch, std::int64_t tokens) {
  const at::Tensor mask = at::empty({std::ssize(plan.send_rows), batch, std::ssize(plan.held)},
                                    at::kByte);  // [T, B, H]
  std::copy(plan.local.begin(), plan.local.end(), mask.mutable_data_ptr<std::uint8_t>());
  const Assignments assignments = Assignments::of(mask, tokens);
  return {{assignments}, assignments.sequences};
}

/// Waits for `pending` step by step and adds blocks[plan.sent[i]] += returned[i], rank after rank
/// within a step, always in the same order.
void add_returned(const at::Tensor& blocks, const LayerPlan& plan, const at::Tensor& returned,
                  Exchange::PendingTransfer& pending) {
  const at::Tensor sent = indices(plan.sent, blocks);
  std::int64_t row = 0;
  for (std::int64_t t = 0; t < std::ssize(plan.send_rows); ++t) {
    pending.wait(t);
    // One call per rank: a token block goes to a rank once, so no index occurs twice in a call.
    for (const auto count : plan.send_rows[t]) {
      if (count == 0) continue;
      const at::Tensor rows = returned.narrow(0, row, count).to(blocks.scalar_type());
      blocks.index_add_(0, sent.narrow(0, row, count), rows);
      row += count;
    }
  }
}

/// Hides spikes from autograd among the arguments of a Function.
struct Untracked {
  Spikes z;
};

/// What forward saves for backward.
struct State : torch::CustomClassHolder {
  State(const LayerPlan& p, Exchange& e, const Candidates& here, std::int64_t batch,
        std::int64_t width, std::int64_t candidates)
      : plan(p),
        exchange(e),
        width(width),
        candidates(candidates),
        bfloat16(here.precision().bfloat16_products),
        local(here, local_assignments(p, batch, here.tokens())),
        remote(here, remote_assignments(p, here.tokens())),
        offsets(dist::row_offsets(p.receive_rows)) {}
  at::Tensor of_step(const at::Tensor& rows, std::int64_t t) const {
    return rows.slice(0, offsets[t], offsets[t + 1]);
  }
  /// Returns how dense rows are sent.
  at::TensorOptions wire_options(const at::Tensor& like) const {
    return bfloat16 ? like.options().dtype(at::kBFloat16) : like.options();
  }

  const LayerPlan& plan;
  Exchange& exchange;
  std::int64_t width, candidates;   // D, N
  bool bfloat16;                    // sums and gradients are sent as bfloat16
  StagedAssignments local, remote;  // local assignments in one part, remote ones in a part per step
  std::vector<std::int64_t> offsets;  // [T + 1] offsets of the steps in the received token blocks
};

/// The autograd function of forward_on_ranks. Inputs: the gradient proxy of z [T*B*M, D] (and z
/// itself), P [T*B, N], the parameters of the held candidates. Output: [T*B, M*D].
class ExpertFunction : public Function<ExpertFunction> {
 public:
  static at::Tensor forward(AutogradContext* context, const at::Tensor& proxy,
                            const Untracked& untracked, const at::Tensor& gate,
                            at::TensorList parameters, const Candidates& held,
                            const LayerPlan& plan, Exchange& exchange, const SpikeProbe& probe) {
    const std::int64_t steps = std::ssize(plan.send_rows), received = std::ssize(plan.received);
    const Spikes& z = untracked.z;
    const std::int64_t tokens = held.tokens(), elements = tokens * z.width();
    const at::Tensor message = z.message(tokens);
    const at::Tensor received_z = at::empty({received, message.size(1)}, message.options());
    auto spikes = exchange.send_out(Transfer::dispatch, plan, message, received_z);

    const at::AutoGradMode inner_graphs(true);
    variable_list leaves;
    for (const auto& parameter : parameters) leaves.push_back(parameter.detach().requires_grad_());
    const auto state = c10::make_intrusive<State>(plan, exchange, held.with_parameters(leaves),
                                                  gate.size(0) / steps, z.width(), gate.size(1));
    state->local.up(0, z);
    spikes.poll();
    state->local.neurons();
    held.show(state->local.spikes(), nullptr, probe);
    spikes.poll();
    const at::Tensor sum =
        state->local.down(0, gate.detach().index_select(1, indices(plan.held, gate)));

    const at::Tensor remote_gates = at::tensor(plan.gates, at::kDouble)
                                        .view({received, std::ssize(plan.held)})
                                        .to(gate.options());
    const at::Tensor returned = exchange.receive_buffer(Transfer::combine, std::ssize(plan.sent),
                                                        elements, state->wire_options(sum));
    for (std::int64_t t = 0; t < steps; ++t) {
      spikes.wait(t);
      state->remote.up(
          t, Spikes::of_message(state->of_step(received_z, t), z.width(), proxy.scalar_type()));
    }
    state->remote.neurons();
    held.show(state->remote.spikes(), nullptr, probe);
    auto sums = exchange.begin(Transfer::combine, plan, returned);
    for (std::int64_t t = 0; t < steps; ++t) {
      sums.send(t, state->remote.down(t, state->of_step(remote_gates, t)));
    }
    {
      const at::NoGradGuard no_grad;
      add_returned(sum, plan, returned, sums);
    }
    context->saved_data["state"] = c10::IValue::make_capsule(state);
    return sum;
  }

  static variable_list backward(AutogradContext* context, variable_list grads) {
    const auto saved = context->saved_data["state"].toCapsule();
    auto& state = static_cast<State&>(*saved);
    const LayerPlan& plan = state.plan;
    const at::Tensor grad = grads[0].contiguous();  // [T*B, M*D]
    const std::int64_t steps = std::ssize(plan.send_rows), sent = std::ssize(plan.sent);
    const at::Tensor held = indices(plan.held, grad);
    const auto all_candidates = [&](const at::Tensor& of_held) {  // [rows, H] -> [rows, N]
      return at::zeros({of_held.size(0), state.candidates}, grad.options())
          .index_copy_(1, held, of_held);
    };
    variable_list parameters;

    const at::Tensor grad_sums = state.exchange.receive_buffer(
        Transfer::combine_backward, state.offsets.back(), grad.size(1), state.wire_options(grad));
    auto out = state.exchange.send_out(Transfer::combine_backward, plan, grad, grad_sums);
    const at::Tensor grad_local_gate =
        all_candidates(state.local.down_backward(0, grad, parameters));
    out.poll();
    state.local.neurons_backward(parameters);
    out.poll();
    const auto blocks_of = [&](const at::Tensor& rows) { return rows.view({-1, grad.size(1)}); };
    const at::Tensor grad_local_z = blocks_of(state.local.up_backward(0, parameters));

    variable_list remote_gates;
    for (std::int64_t t = 0; t < steps; ++t) {
      out.wait(t);
      const at::Tensor grad_of_step = state.of_step(grad_sums, t).to(grad.scalar_type());
      remote_gates.push_back(state.remote.down_backward(t, grad_of_step, parameters));
    }
    const at::Tensor grad_gate = at::empty({sent, state.candidates}, grad.options());
    auto scalars =
        state.exchange.send(Transfer::dispatch_backward, plan,
                            all_candidates(at::cat(remote_gates)), grad_gate, dist::Rows::scalars);
    state.remote.neurons_backward(parameters);
    const at::Tensor grad_z = state.exchange.receive_buffer(Transfer::dispatch_backward, sent,
                                                            grad.size(1), state.wire_options(grad));
    auto back = state.exchange.begin(Transfer::dispatch_backward, plan, grad_z);
    for (std::int64_t t = 0; t < steps; ++t) {
      back.send(t, blocks_of(state.remote.up_backward(t, parameters)));
      scalars.poll();
    }
    add_returned(grad_local_gate, plan, grad_gate, scalars);
    add_returned(grad_local_z, plan, grad_z, back);

    variable_list result{grad_local_z.view({-1, state.width}), at::Tensor(), grad_local_gate};
    result.insert(result.end(), parameters.begin(), parameters.end());
    result.resize(result.size() + 4);  // no gradients for held, plan, exchange, probe
    return result;
  }
};

}  // namespace

at::Tensor forward_on_ranks(const Candidates& held, const Spikes& z, const LayerRouting& routing,
                            Exchange& exchange, const SpikeProbe& probe) {
  const std::int64_t blocks = z.rows() / held.tokens(), count = routing.probability.size(2);
  const auto parameters = held.parameters();
  return ExpertFunction::apply(z.proxy, Untracked{z}, routing.probability.reshape({blocks, count}),
                               at::TensorList(parameters), held, *routing.plan, exchange, probe);
}

}  // namespace laterna::model
