#include "model/expert_parallel.h"

#include <ATen/ATen.h>
#include <torch/csrc/autograd/autograd.h>
#include <torch/csrc/autograd/custom_function.h>

#include <map>

namespace laterna::model {
namespace {

using dist::Exchange;
using dist::LayerPlan;
using dist::Leg;
using torch::autograd::AutogradContext;
using torch::autograd::Function;
using torch::autograd::variable_list;

// T spiking steps, B samples of this rank, S blocks sent, R received, N candidates, H held here.

at::Tensor indices(const std::vector<std::int64_t>& numbers, const at::Tensor& like) {
  return at::tensor(numbers, at::kLong).to(like.device());
}

at::Tensor leaf(const at::Tensor& tensor) { return tensor.detach().requires_grad_(); }

/// Who of the received blocks [R] visits whom.
Visits guest_visits(const LayerPlan& plan, std::int64_t tokens) {
  const auto steps = static_cast<std::int64_t>(plan.send_rows.size());
  const auto rows = static_cast<std::int64_t>(plan.received.size());
  std::map<std::int64_t, std::int64_t> guests;  // a sample's number in the round -> guest
  const auto sample_of = [&](std::int64_t row) { return plan.received[row] % plan.samples; };
  for (std::int64_t row = 0; row < rows; ++row) guests.emplace(sample_of(row), guests.size());
  const at::Tensor blocks = at::full({steps, std::ssize(guests)}, -1, at::kLong);
  for (std::int64_t row = 0; row < rows; ++row) {
    blocks[plan.received[row] / plan.samples][guests.at(sample_of(row))] = row;
  }
  const at::Tensor mask = at::empty({rows, std::ssize(plan.held)}, at::kByte);
  std::copy(plan.guests.begin(), plan.guests.end(), mask.mutable_data_ptr<std::uint8_t>());
  return Visits::among(blocks, mask, tokens);
}

Visits own_visits(const LayerPlan& plan, std::int64_t batch, std::int64_t tokens) {
  const at::Tensor mask = at::empty({std::ssize(plan.send_rows), batch, std::ssize(plan.held)},
                                    at::kByte);  // [T, B, H]
  std::copy(plan.own.begin(), plan.own.end(), mask.mutable_data_ptr<std::uint8_t>());
  return Visits::of(mask, tokens);
}

/// blocks[plan.sent[i]] += returned[i], rank after rank within a step: always in the same order.
void add_returned(const at::Tensor& blocks, const LayerPlan& plan, const at::Tensor& returned) {
  const at::Tensor sent = indices(plan.sent, blocks);
  std::int64_t row = 0;
  for (const auto& step : plan.send_rows) {
    for (const auto count : step) {  // a block goes once to a rank: no index twice in one call
      if (count) blocks.index_add_(0, sent.narrow(0, row, count), returned.narrow(0, row, count));
      row += count;
    }
  }
}

/// What forward leaves to backward: the graphs of both halves, each with its own leaves.
struct State : torch::CustomClassHolder {
  State(const LayerPlan& p, Exchange& e) : plan(p), exchange(e) {}
  const LayerPlan& plan;
  Exchange& exchange;
  variable_list parameters;                 // leaves that share the candidates' memory
  at::Tensor z, gate, own_sum;              // [T*B, M*D], [T*B, N], [T*B, M*D]
  at::Tensor guest_z, guest_gate, partial;  // [R, M*D], [R, H], [R, M*D]
};

/// Inputs: z [T*B, M*D], P [T*B, N], the parameters of the held candidates. Output: [T*B, M*D].
class ExpertFunction : public Function<ExpertFunction> {
 public:
  static at::Tensor forward(AutogradContext* context, const at::Tensor& z, const at::Tensor& gate,
                            at::TensorList parameters, const Candidates& held,
                            const LayerPlan& plan, const at::Tensor& gates, Exchange& exchange) {
    const auto state = c10::make_intrusive<State>(plan, exchange);
    const std::int64_t steps = std::ssize(plan.send_rows), rows = std::ssize(plan.received);
    const at::AutoGradMode inner_graphs(true);
    for (const auto& parameter : parameters) state->parameters.push_back(leaf(parameter));
    const Candidates here = held.with_parameters(state->parameters);

    const at::Tensor guest_z = at::empty({rows, z.size(1)}, z.options().requires_grad(false));
    auto spikes = exchange.send_out(Leg::spikes, plan, z.detach(), guest_z);

    state->z = leaf(z);
    state->gate = leaf(gate);
    const at::Tensor columns = indices(plan.held, z);
    const SpikeProbe between_products = [&](auto...) { spikes.poll(); };
    state->own_sum =
        here.visit(state->z, state->gate.index_select(1, columns),
                   own_visits(plan, z.size(0) / steps, here.tokens()), between_products);
    spikes.wait();
    state->guest_z = leaf(guest_z);
    state->guest_gate = leaf(gates.to(z.device()));
    state->partial =
        here.visit(state->guest_z, state->guest_gate, guest_visits(plan, here.tokens()), {});

    const at::Tensor returned = at::empty({std::ssize(plan.sent), z.size(1)}, guest_z.options());
    exchange.send_back(Leg::sums, plan, state->partial.detach(), returned).wait();
    const at::Tensor sum = state->own_sum.detach().clone();
    {
      const at::NoGradGuard no_grad;
      add_returned(sum, plan, returned);
    }
    context->saved_data["state"] = c10::IValue::make_capsule(state);
    return sum;
  }

  static variable_list backward(AutogradContext* context, variable_list grads) {
    const auto holder = context->saved_data["state"].toCapsule();
    auto& state = static_cast<State&>(*holder);
    const LayerPlan& plan = state.plan;
    const at::Tensor grad = grads[0].contiguous();  // [T*B, M*D]
    const at::Tensor grad_partial = at::empty_like(state.partial);
    auto out = state.exchange.send_out(Leg::sum_gradients, plan, grad, grad_partial);
    variable_list own = gradients(state.own_sum, grad, state.z, state.gate, state.parameters);
    out.wait();
    variable_list guests =
        gradients(state.partial, grad_partial, state.guest_z, state.guest_gate, state.parameters);

    const std::int64_t sent = std::ssize(plan.sent), count = state.gate.size(1);
    const at::Tensor grad_z = at::empty({sent, grad.size(1)}, grad.options());
    const at::Tensor grad_gate = at::empty({sent, count}, grad.options());
    const at::Tensor scalars = at::zeros({guests[1].size(0), count}, grad.options());
    scalars.index_copy_(1, indices(plan.held, grad), guests[1]);
    auto back =
        state.exchange.send_back(Leg::spike_gradients, plan, guests[0].contiguous(), grad_z);
    auto scalars_back = state.exchange.send_scalars_back(plan, scalars, grad_gate);
    for (std::size_t i = 2; i < own.size(); ++i) own[i].add_(guests[i]);
    back.wait();
    scalars_back.wait();
    add_returned(own[0], plan, grad_z);
    add_returned(own[1], plan, grad_gate);
    own.resize(own.size() + 4);  // held, plan, gates, exchange
    return own;
  }

 private:
  /// With respect to z, gate and the parameters; frees the graph.
  static variable_list gradients(at::Tensor& output, const at::Tensor& grad, const at::Tensor& z,
                                 const at::Tensor& gate, const variable_list& parameters) {
    variable_list inputs{z, gate};
    inputs.insert(inputs.end(), parameters.begin(), parameters.end());
    variable_list result = torch::autograd::grad({output}, inputs, {grad});
    output.reset();
    for (auto& tensor : result) tensor = tensor.contiguous();
    return result;
  }
};

}  // namespace

at::Tensor forward_on_ranks(const Candidates& held, const at::Tensor& z,
                            const LayerRouting& routing, const LayerPlan& plan,
                            const at::Tensor& gates, Exchange& exchange) {
  const std::int64_t blocks = z.size(0) * z.size(1), count = routing.probability.size(2);
  const auto parameters = held.parameters();
  return ExpertFunction::apply(z.view({blocks, z.size(2) * z.size(3)}),
                               routing.probability.reshape({blocks, count}),
                               at::TensorList(parameters), held, plan, gates, exchange)
      .view(z.sizes());
}

}  // namespace laterna::model
