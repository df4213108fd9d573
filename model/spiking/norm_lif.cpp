#include "model/spiking/norm_lif.h"

#include <ATen/ATen.h>
#include <ATen/Dispatch.h>
#include <torch/csrc/autograd/custom_function.h>

#include "model/kernels/cpu/parallel.h"
#include "model/probes/part.h"

namespace laterna::model {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::Function;
using torch::autograd::variable_list;

/// Function::apply takes an input that may be missing as an optional, not as an undefined tensor.
std::optional<at::Tensor> optional(const at::Tensor& tensor) {
  return tensor.defined() ? std::optional(tensor) : std::nullopt;
}

template <typename Real>
const Real* pointer(const at::Tensor& tensor) {
  return tensor.defined() ? tensor.const_data_ptr<Real>() : nullptr;
}

template <typename Real>
std::vector<const Real*> pointers(at::TensorList tensors) {
  std::vector<const Real*> all;
  for (const auto& tensor : tensors) all.push_back(tensor.const_data_ptr<Real>());
  return all;
}

/// What forward and backward of a call share: sizes and tables, without the tensors that autograd
/// saves.
struct Call {
  Sequences sequences;
  NeuronOptions options;
  std::int64_t groups, width;

  std::int64_t steps() const { return sequences.blocks.size(1); }
  std::int64_t items() const { return sequences.blocks.size(0) * sequences.tokens; }
  template <typename Real>
  kernels::NormLif<Real> arguments() const {
    kernels::NormLif<Real> a{};
    a.steps = steps();
    a.tokens = sequences.tokens;
    a.groups = groups;
    a.width = width;
    a.blocks = sequences.blocks.const_data_ptr<std::int32_t>();
    a.parameter_groups = pointer<std::int32_t>(sequences.parameter_groups);
    a.threshold = Real(options.threshold);
    a.surrogate = options.surrogate;
    return a;
  }
};

struct CallHolder : torch::CustomClassHolder {
  explicit CallHolder(Call c) : call(std::move(c)) {}
  Call call;
};

/// The autograd function of norm_lif and residual_norm_lif. Inputs: x, delta, shift, then the
/// weights and the biases of the norms. Outputs: bits and gradient proxy of the spikes, and the sum
/// if delta or shift is given.
class NormLifFunction : public Function<NormLifFunction> {
 public:
  static variable_list forward(AutogradContext* context, const at::Tensor& x,
                               const std::optional<at::Tensor>& maybe_delta,
                               const std::optional<at::Tensor>& maybe_shift,
                               at::TensorList parameters, const Call& call) {
    RECORD_USER_SCOPE(part::kNeurons);
    const at::Tensor delta = maybe_delta.value_or(at::Tensor());
    const at::Tensor shift = maybe_shift.value_or(at::Tensor());
    const bool adds = delta.defined() || shift.defined();
    at::Tensor sum = adds ? at::empty_like(x) : x;
    const std::int64_t words = call.groups * kernels::words_of(call.width);
    const at::Tensor bits =
        at::empty({x.numel() / (call.groups * call.width), words}, at::TensorOptions(at::kLong));
    const std::int64_t rows = x.numel() / call.width;
    at::Tensor mean = at::empty({rows}, x.options()), inverse_std = at::empty({rows}, x.options());
    const std::size_t half = parameters.size() / 2;
    AT_DISPATCH_FLOATING_TYPES(x.scalar_type(), "norm_lif", [&] {
      const auto weights = pointers<scalar_t>(parameters.slice(0, half));
      const auto biases = pointers<scalar_t>(parameters.slice(half));
      auto arguments = call.arguments<scalar_t>();
      arguments.weight = weights.data();
      arguments.bias = biases.data();
      arguments.input = pointer<scalar_t>(x);
      arguments.delta = pointer<scalar_t>(delta);
      arguments.shift = pointer<scalar_t>(shift);
      arguments.sum = adds ? sum.data_ptr<scalar_t>() : nullptr;
      arguments.spikes = words_in(bits);
      arguments.mean = mean.data_ptr<scalar_t>();
      arguments.inverse_std = inverse_std.data_ptr<scalar_t>();
      kernels::for_ranges(call.items(), [&](std::int64_t, std::int64_t begin, std::int64_t end) {
        std::vector<scalar_t> scratch(2 * call.width);
        auto mine = arguments;
        mine.scratch = scratch.data();
        kernels::kernels<scalar_t>().norm_lif_forward(mine, begin, end);
      });
    });
    variable_list saved{sum, bits, mean, inverse_std};
    saved.insert(saved.end(), parameters.begin(), parameters.end());
    context->save_for_backward(saved);
    context->saved_data["call"] = c10::IValue::make_capsule(c10::make_intrusive<CallHolder>(call));
    context->saved_data["delta"] = delta.defined();
    context->saved_data["shift"] = shift.defined();
    context->set_materialize_grads(false);
    context->mark_non_differentiable({bits});
    const at::Tensor proxy = empty_proxy({bits.size(0), call.groups * call.width}, x.scalar_type());
    if (adds) return {bits, proxy, sum};
    return {bits, proxy};
  }

  static variable_list backward(AutogradContext* context, variable_list grads) {
    RECORD_USER_SCOPE(part::kNeuronsBackward);
    const auto saved = context->get_saved_variables();
    const auto holder = context->saved_data["call"].toCapsule();
    const Call& call = static_cast<const CallHolder&>(*holder).call;
    const bool delta = context->saved_data["delta"].toBool();
    const bool shift = context->saved_data["shift"].toBool();
    const at::Tensor& sum = saved[0];
    at::Tensor grad_sum = grads.size() == 3 ? grads[2] : at::Tensor();
    at::Tensor grad_spikes = grads[1];
    if (grad_sum.defined()) grad_sum = grad_sum.contiguous();
    grad_spikes = grad_spikes.defined() ? grad_spikes.contiguous() : at::zeros_like(sum);
    at::Tensor grad_input = at::empty_like(sum);
    const std::int64_t norms = (saved.size() - 4) / 2;
    const std::int64_t ranges = kernels::range_count(call.items());
    at::Tensor partial = at::zeros({ranges, norms, 2, call.width}, sum.options());
    AT_DISPATCH_FLOATING_TYPES(sum.scalar_type(), "norm_lif_backward", [&] {
      const at::TensorList parameters = at::TensorList(saved).slice(4);
      const auto weights = pointers<scalar_t>(parameters.slice(0, norms));
      const auto biases = pointers<scalar_t>(parameters.slice(norms));
      auto arguments = call.arguments<scalar_t>();
      arguments.weight = weights.data();
      arguments.bias = biases.data();
      arguments.input = pointer<scalar_t>(sum);
      arguments.spikes = words_in(saved[1]);
      arguments.mean = const_cast<scalar_t*>(pointer<scalar_t>(saved[2]));
      arguments.inverse_std = const_cast<scalar_t*>(pointer<scalar_t>(saved[3]));
      arguments.grad_spikes = pointer<scalar_t>(grad_spikes);
      arguments.grad_sum = pointer<scalar_t>(grad_sum);
      arguments.grad_input = grad_input.data_ptr<scalar_t>();
      kernels::for_ranges(call.items(), [&](std::int64_t r, std::int64_t begin, std::int64_t end) {
        std::vector<scalar_t> scratch((call.steps() + 3) * call.width);
        auto mine = arguments;
        mine.scratch = scratch.data();
        mine.grad_parameters = partial[r].data_ptr<scalar_t>();
        kernels::kernels<scalar_t>().norm_lif_backward(mine, begin, end);
      });
    });
    const at::Tensor total = partial.sum(0);  // [norms, 2, D]
    variable_list result{grad_input, delta ? grad_input : at::Tensor(),
                         shift ? grad_input.sum(at::IntArrayRef{0, 2}) : at::Tensor()};
    for (int part : {0, 1}) {
      for (std::int64_t i = 0; i < norms; ++i) result.push_back(total[i][part]);
    }
    result.emplace_back();  // no gradient for the call
    return result;
  }
};

Call call_of(const at::Tensor& x, const Norms& norms, const Sequences& sequences,
             const NeuronOptions& options) {
  const std::int64_t width = norms.weights[0].numel();
  TORCH_CHECK(x.is_contiguous(), "norm_lif: activations must be contiguous");
  TORCH_CHECK(x.numel() % (sequences.tokens * norms.groups * width) == 0, "norm_lif: rows of ",
              x.size(-1), " elements do not divide into ", norms.groups, " groups of ", width);
  return {sequences, options, norms.groups, width};
}

/// norm_lif for devices without kernels.
Spikes plain_spikes(const at::Tensor& x, const Norms& norms, const Sequences& sequences,
                    const NeuronOptions& options) {
  const std::int64_t width = norms.groups * norms.weights[0].numel();
  return Spikes::of(norm_lif_reference(x, norms, sequences, options).view({-1, width}),
                    norms.groups);
}

std::vector<at::Tensor> parameters_of(const Norms& norms) {
  std::vector<at::Tensor> all = norms.weights;
  all.insert(all.end(), norms.biases.begin(), norms.biases.end());
  return all;
}

}  // namespace

Spikes norm_lif(const at::Tensor& x, const Norms& norms, const Sequences& sequences,
                const NeuronOptions& options) {
  if (!has_kernels(x.device())) return plain_spikes(x, norms, sequences, options);
  const auto parameters = parameters_of(norms);
  const auto out = NormLifFunction::apply(x, std::nullopt, std::nullopt, at::TensorList(parameters),
                                          call_of(x, norms, sequences, options));
  return {out[1], out[0], norms.groups};
}

Residual residual_norm_lif(const at::Tensor& x, const at::Tensor& delta, const at::Tensor& shift,
                           const Norms& norms, const Sequences& sequences,
                           const NeuronOptions& options) {
  if (!has_kernels(x.device())) {
    at::Tensor sum = x;  // [T, B, M, D]
    if (delta.defined()) sum = sum + delta;
    if (shift.defined()) sum = sum + shift.unsqueeze(1);
    return {sum, plain_spikes(sum, norms, sequences, options)};
  }
  const auto parameters = parameters_of(norms);
  auto out = NormLifFunction::apply(x, optional(delta), optional(shift), at::TensorList(parameters),
                                    call_of(x, norms, sequences, options));
  return {out[2], {out[1], out[0], norms.groups}};
}

namespace {

/// Returns the parameter group of each token block, int64 [blocks] on the CPU.
at::Tensor parameter_group_of_blocks(const Sequences& sequences, std::int64_t blocks) {
  const at::Tensor parameter_groups = at::zeros({blocks}, at::kLong);
  if (!sequences.parameter_groups.defined()) return parameter_groups;
  const auto path = sequences.blocks.accessor<std::int32_t, 2>();
  const auto* group = sequences.parameter_groups.const_data_ptr<std::int32_t>();
  for (std::int64_t s = 0; s < path.size(0); ++s) {
    for (std::int64_t t = 0; t < path.size(1); ++t) {
      if (path[s][t] >= 0) parameter_groups.mutable_data_ptr<std::int64_t>()[path[s][t]] = group[s];
    }
  }
  return parameter_groups;
}

/// Returns the neurons' currents, LN of rows [blocks, M, G, D], each group with its own parameters.
at::Tensor normalised(const at::Tensor& rows, const Norms& norms, const Sequences& sequences) {
  const std::int64_t groups = rows.size(2), width = rows.size(3);
  const at::Tensor plain = at::layer_norm(rows, {width}, {}, {}, 1e-5);
  const at::Tensor parameter_groups =
      parameter_group_of_blocks(sequences, rows.size(0)).to(rows.device());
  const auto of_block = [&](const std::vector<at::Tensor>& parameters) {  // [blocks, 1, G, D]
    return at::stack(parameters).view({-1, 1, groups, width}).index_select(0, parameter_groups);
  };
  return plain * of_block(norms.weights) + of_block(norms.biases);
}

}  // namespace

// S sequences, T steps, M tokens, G groups, D width.
at::Tensor norm_lif_reference(const at::Tensor& x, const Norms& norms, const Sequences& sequences,
                              const NeuronOptions& options) {
  const std::int64_t width = norms.weights[0].numel(), groups = norms.groups;
  const std::int64_t count = sequences.blocks.size(0), steps = sequences.blocks.size(1);
  const at::Tensor rows = x.view({-1, sequences.tokens, groups, width});  // [blocks, M, G, D]
  const std::int64_t blocks = rows.size(0);
  // A step without a token block reads an extra one of zeros, appended to the others: no current,
  // the membrane leaks.
  const at::Tensor silent = at::zeros({1, sequences.tokens, groups, width}, x.options());
  const at::Tensor currents = at::cat({normalised(rows, norms, sequences), silent});
  const at::Tensor path = sequences.blocks.t().contiguous().to(at::kLong);  // [T, S]
  const at::Tensor place = at::where(path.ge(0), path, blocks).to(x.device());

  at::Tensor v = at::zeros({count, sequences.tokens, groups, width}, x.options());
  std::vector<at::Tensor> fired;  // [T] of [S, M, G, D]
  for (std::int64_t t = 0; t < steps; ++t) {
    const at::Tensor u = charge(v, currents.index_select(0, place[t]));
    fired.push_back(fire(u, options));
    v = reset(u, fired.back());
  }
  const at::Tensor active = path.flatten().ge(0).nonzero().view(-1);  // [blocks] indices into T * S
  const at::Tensor row_of_block =
      at::empty_like(active).index_copy_(0, path.flatten().index_select(0, active), active);
  return at::cat(fired).index_select(0, row_of_block.to(x.device())).view(x.sizes());
}

}  // namespace laterna::model
