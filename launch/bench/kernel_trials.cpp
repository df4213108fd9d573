#include "launch/bench/kernel_trials.h"

#include <ATen/ATen.h>
#include <torch/csrc/autograd/autograd.h>

#include <cmath>
#include <memory>

#include "model/candidates.h"
#include "model/optimizer.h"
#include "model/router.h"
#include "model/spiking/neuron.h"

namespace laterna::launch {

using model::Spikes;

at::Tensor exact(at::IntArrayRef shape, at::ScalarType dtype) {
  return at::randint(-128, 128, shape, dtype) / 64;
}

Spikes random_spikes(std::int64_t rows, std::int64_t width, double density, at::ScalarType dtype,
                     std::int64_t groups) {
  return Spikes::of(at::rand({rows, groups * width}).lt(density).to(dtype), groups);
}

Tensors proxies(const Outputs& all) {
  Tensors tensors;
  for (const auto& one : all) tensors.push_back(one.proxy);
  return tensors;
}

Outputs dense(const Tensors& tensors) {
  Outputs all;
  for (const auto& tensor : tensors) all.push_back({tensor, at::Tensor()});
  return all;
}

KernelTrial forward(const Operation& o) {
  KernelTrial trial;
  trial.kernel = [o] {
    const at::NoGradGuard no_grad;
    return o.fused(o.inputs);
  };
  trial.reference = [o] {
    const at::NoGradGuard no_grad;
    return o.plain(proxies(o.inputs));
  };
  return trial;
}

namespace {

/// Returns a function that computes the gradients of `leaves`, given those of `roots`; it can be
/// called any number of times. A leaf that no root depends on has a gradient of zeros.
std::function<Tensors()> gradients_of(const Tensors& roots, const Tensors& leaves,
                                      const Tensors& grads) {
  Tensors given;
  for (std::size_t i = 0; i < roots.size(); ++i) {
    given.push_back(grads[i].to(roots[i].scalar_type()).view(roots[i].sizes()));
  }
  return [=] {
    Tensors found = torch::autograd::grad(roots, leaves, given, /*retain_graph=*/true,
                                          /*create_graph=*/false, /*allow_unused=*/true);
    for (std::size_t i = 0; i < found.size(); ++i) {
      if (!found[i].defined()) found[i] = at::zeros_like(leaves[i]);
    }
    return found;
  };
}

}  // namespace

KernelTrial backward(const Operation& o) {
  Outputs leaves;
  Tensors plain_leaves, grads;
  for (const auto& input : o.inputs) {
    leaves.push_back(input.leaf());
    plain_leaves.push_back(input.proxy.detach().clone().requires_grad_());
  }
  const Tensors roots = proxies(o.fused(leaves)), plain_roots = o.plain(plain_leaves);
  for (const auto& root : roots) grads.push_back(exact(root.sizes(), root.scalar_type()));
  const auto fused = gradients_of(roots, proxies(leaves), grads);
  KernelTrial trial;
  trial.kernel = [fused] { return dense(fused()); };
  trial.reference = gradients_of(plain_roots, plain_leaves, grads);
  return trial;
}

// --- Assignments ---

namespace {

/// Returns the assignments of T * B token blocks to k of N candidates; with silent paths some token
/// blocks have none.
model::Assignments assignments_of(const KernelShape& s) {
  const at::Tensor scores = at::rand({s.steps, s.batch, s.candidates}, at::kDouble);
  at::Tensor mask = model::largest(scores, s.selected);
  if (s.paths == Paths::kSilent) mask.mul_(at::rand({s.steps, s.batch, 1}).lt(0.6));
  return model::Assignments::of(mask, s.tokens);
}

Operation combine(const KernelShape& s, at::ScalarType dtype) {
  const model::Assignments assignments = assignments_of(s);
  const at::Tensor outputs = exact({assignments.source.size(0), s.tokens * s.width}, dtype);
  const at::Tensor gate = exact({s.steps * s.batch, s.candidates}, dtype);
  return {dense({outputs, gate}),
          [=](const Outputs& in) {
            return dense({model::combine(in[0].proxy, in[1].proxy, assignments)});
          },
          [=](const Tensors& in) -> Tensors {
            return {model::combine_reference(in[0], in[1], assignments)};
          }};
}

/// The work on the token blocks of all assignments, `reads` of which the kernel reads or writes for
/// each one.
void count_assignments(const KernelShape& s, double operations, double reads, KernelTrial& trial) {
  const double blocks = double(s.rows() * s.width), assigned = double(s.selected) * blocks;
  trial.additions = operations / 2 * assigned;
  trial.flops = operations * assigned;
  trial.bytes = 4 * (reads * assigned + blocks);
}

}  // namespace

KernelTrial combine_forward(const KernelShape& s, at::ScalarType dtype) {
  KernelTrial trial = forward(combine(s, dtype));
  count_assignments(s, 2, 1, trial);
  return trial;
}

KernelTrial combine_backward(const KernelShape& s, at::ScalarType dtype) {
  KernelTrial trial = backward(combine(s, dtype));
  count_assignments(s, 4, 2, trial);
  return trial;
}

// The gradient of gather() is the sum over assignments without a gate.
KernelTrial gather_backward(const KernelShape& s, at::ScalarType dtype) {
  const model::Assignments assignments = assignments_of(s);
  KernelTrial trial = backward(
      {{random_spikes(s.rows(), s.width, s.density, dtype)},
       [=](const Outputs& in) -> Outputs { return {model::gather(in[0], assignments, s.tokens)}; },
       [=](const Tensors& in) -> Tensors {
         const at::Tensor blocks = in[0].view({-1, s.tokens * s.width});
         return {blocks.index_select(0, assignments.source)};
       }});
  count_assignments(s, 1, 1, trial);
  return trial;
}

// --- Routing ---

namespace {

/// Eqs 9-12. inputs: SiLU(e) [B, D], weight, bias and, with a lateral connection, gamma, Lambda and
/// threshold. Returns P and the selection, [T, B, N].
Tensors plain_routing(const KernelShape& s, const Tensors& in) {
  const at::Tensor logits = at::linear(in[0], in[1], in[2]);
  Tensors corrected;
  at::Tensor v = at::zeros_like(logits);
  for (std::int64_t t = 0; t < s.steps; ++t) {
    corrected.push_back(logits);
    if (!s.lateral) continue;
    const at::Tensor u = model::charge(v, at::mm(logits, in[4].t()));
    const at::Tensor omega = model::spike(u - in[5], s.surrogate);
    v = model::reset(u, omega);
    corrected[t] = logits - in[3] * omega;
  }
  const at::Tensor lhat = at::stack(corrected);
  return {at::softmax(lhat, -1), model::largest(lhat.detach(), s.selected)};
}

/// A router, its inputs, and these in float64, in which it computes for any dtype.
struct RouterInputs {
  model::Router router;
  Tensors own, wide;
};

RouterInputs router_of(const KernelShape& s, at::ScalarType dtype) {
  model::ModelConfig config;
  config.depth = config.heads = config.hidden_ratio = config.diffusion_steps = 1;
  config.image_size = config.patch = 1;
  config.width = s.width, config.spiking_steps = s.steps;
  config.candidates = s.candidates, config.selected = s.selected, config.lateral = s.lateral;
  config.surrogate = s.surrogate == kernels::Surrogate::kSigmoid ? "sigmoid" : "arctangent";
  const model::Parameters parameters(model::parameter_specs(config), dtype, true);
  Tensors own{at::randn({s.batch, s.width}, dtype).requires_grad_()}, wide;
  {
    const at::NoGradGuard no_grad;
    const auto add = [&](const char* name, const at::Tensor& start) {
      const at::Tensor& parameter = parameters[std::string("blocks.0.router.") + name];
      own.push_back(parameter.copy_(start));
    };
    add("select.weight", at::randn({s.candidates, s.width}) / std::sqrt(double(s.width)));
    add("select.bias", at::randn({s.candidates}));
    if (s.lateral) {
      add("lateral.gamma", at::scalar_tensor(2));
      add("lateral.aggregation", at::randn({s.candidates, s.candidates}));
      add("lateral.threshold", at::scalar_tensor(0.4));
    }
  }
  for (const auto& tensor : own) {
    wide.push_back(tensor.detach().to(at::kDouble).requires_grad_());
  }
  return {model::Router(parameters, config, 0), own, wide};
}

void count_routing(const KernelShape& s, at::ScalarType dtype, double passes, KernelTrial& trial) {
  const double batch = double(s.batch), width = double(s.width), count = double(s.candidates);
  trial.tolerance = dtype == at::kDouble ? 1e-12 : 1e-6;
  trial.additions = passes * batch * width * count;
  trial.flops = 2 * trial.additions;
  trial.bytes = passes * 4 * (batch + count) * width;
}

}  // namespace

KernelTrial routing_forward(const KernelShape& s, at::ScalarType dtype) {
  const RouterInputs inputs = router_of(s, dtype);
  KernelTrial trial;
  trial.kernel = [inputs] {
    const at::NoGradGuard no_grad;
    const model::LayerRouting routing = inputs.router.route(inputs.own[0]);
    return dense({routing.probability, routing.mask});
  };
  trial.reference = [inputs, s] {
    const at::NoGradGuard no_grad;
    return plain_routing(s, inputs.wide);
  };
  count_routing(s, dtype, 1, trial);
  return trial;
}

KernelTrial routing_backward(const KernelShape& s, at::ScalarType dtype) {
  const RouterInputs inputs = router_of(s, dtype);
  const at::Tensor probability = inputs.router.route(inputs.own[0]).probability;
  const at::Tensor grad = exact(probability.sizes(), dtype);
  const auto fused = gradients_of({probability}, inputs.own, {grad});
  KernelTrial trial;
  trial.kernel = [fused] { return dense(fused()); };
  trial.reference = gradients_of({plain_routing(s, inputs.wide)[0]}, inputs.wide, {grad});
  count_routing(s, dtype, 2, trial);
  return trial;
}

// --- Optimiser ---

// Update 5 (from 0) of AdamW without weight decay, and of the running average.
KernelTrial adamw(const KernelShape& s, at::ScalarType dtype) {
  constexpr double kRate = 1e-2, kScale = 0.5, kBeta1 = 0.9, kBeta2 = 0.999;
  constexpr int kUpdates = 5;
  const model::ParameterSpec all{"all", {s.width}, 0, s.width, 0, false};
  const auto parameters =
      std::make_shared<model::Parameters>(std::vector<model::ParameterSpec>{all}, dtype, true);
  {
    const at::NoGradGuard no_grad;
    parameters->values().normal_();
    parameters->gradient().normal_();
  }
  const auto optimizer = std::make_shared<model::Optimizer>(*parameters, 0.9999);
  optimizer->set_updates(kUpdates);
  optimizer->first_moment().normal_();
  optimizer->second_moment().uniform_();
  const at::Tensor weight = parameters->values().detach().clone();
  const at::Tensor gradient = parameters->gradient() * kScale;
  const at::Tensor first = optimizer->first_moment().clone();
  const at::Tensor second = optimizer->second_moment().clone();
  KernelTrial trial;
  trial.kernel = [=] {
    optimizer->step(kRate, kScale);
    return dense({parameters->values(), optimizer->first_moment(), optimizer->second_moment(),
                  optimizer->average()});
  };
  trial.reference = [=]() -> Tensors {
    const at::Tensor m = kBeta1 * first + (1 - kBeta1) * gradient;
    const at::Tensor v = kBeta2 * second + (1 - kBeta2) * gradient.square();
    const at::Tensor rate = kRate / (1 - std::pow(kBeta1, kUpdates + 1)) /
                            ((v / (1 - std::pow(kBeta2, kUpdates + 1))).sqrt() + 1e-8);
    const at::Tensor w = weight - rate * m;
    const double decay = (1.0 + kUpdates) / (10 + kUpdates);
    return {w, m, v, decay * weight + (1 - decay) * w};
  };
  trial.tolerance = dtype == at::kDouble ? 1e-14 : 2e-6;
  trial.additions = 8 * double(s.width);
  trial.flops = 16 * double(s.width);
  trial.bytes = 4 * 9 * double(s.width);  // reads five streams, writes four
  return trial;
}

KernelTrial sum_of_squares(const KernelShape& s, at::ScalarType dtype) {
  const at::Tensor values = exact({s.width}, dtype);
  KernelTrial trial;
  trial.kernel = [=] {
    return dense({at::scalar_tensor(model::sum_of_squares(values), at::kDouble)});
  };
  trial.reference = [=]() -> Tensors { return {values.to(at::kDouble).square().sum()}; };
  trial.additions = double(s.width);
  trial.flops = 2 * double(s.width);
  trial.bytes = 4 * double(s.width);
  return trial;
}

}  // namespace laterna::launch
