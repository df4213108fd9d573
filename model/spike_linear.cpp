#include "model/spike_linear.h"

#include <ATen/ATen.h>
#include <ATen/Dispatch.h>
#include <torch/csrc/autograd/custom_function.h>

#include "model/dense_product.h"
#include "model/kernels/kernels.h"
#include "model/kernels/parallel.h"

namespace laterna::model {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::Function;
using torch::autograd::variable_list;

// Share of active inputs from which a dense product is taken: BLAS caught up between 20% and 30% in
// `laterna bench`'s runs on AVX-512.
constexpr double kDense = 0.2;

at::Tensor rounded(const at::Tensor& x, bool bfloat16) {
  return bfloat16 ? x.to(at::kBFloat16).to(x.scalar_type()) : x;
}

const std::uint64_t* words(const at::Tensor& bits) {
  return reinterpret_cast<const std::uint64_t*>(bits.const_data_ptr<std::int64_t>());
}

/// How many fired before each row, [rows + 1].
std::vector<std::int64_t> places_before_rows(const at::Tensor& bits) {
  const std::int64_t rows = bits.size(0), count = bits.size(1);
  std::vector<std::int64_t> before(static_cast<std::size_t>(rows) + 1);
  const auto* word = words(bits);
  for (std::int64_t row = 0; row < rows; ++row) {
    std::int64_t fired = 0;
    for (std::int64_t w = 0; w < count; ++w) fired += __builtin_popcountll(*word++);
    before[row + 1] = before[row] + fired;
  }
  return before;
}

/// Cuts rows into ranges in which about equally many fired, so that threads share the work evenly.
template <typename Function>
void for_even_ranges(const std::vector<std::int64_t>& before, const Function& run) {
  const std::int64_t rows = std::ssize(before) - 1, ranges = kernels::range_count(rows);
  // A row costs something even when it is silent: its output is written.
  const auto cost = [&](std::int64_t row) { return before[row] + 4 * row; };
  const auto bound = [&](std::int64_t r) {
    std::int64_t low = 0, high = rows;
    while (low < high) {
      const std::int64_t middle = (low + high) / 2;
      cost(middle) < cost(rows)* r / ranges ? low = middle + 1 : high = middle;
    }
    return low;
  };
  at::parallel_for(0, ranges, 1, [&](std::int64_t first, std::int64_t last) {
    for (std::int64_t r = first; r < last; ++r) run(bound(r), bound(r + 1));
  });
}

/// The spikes [rows, in] of one group, and what is known of them. On a CPU they come as bits.
class GroupProduct {
 public:
  GroupProduct(const Spikes& spikes, bool values_only) : spikes_(spikes) {
    if (values_only) return;
    before_ = places_before_rows(spikes.bits);
    sparse_ = double(before_.back()) <= kDense * double(spikes.rows()) * double(spikes.width());
  }

  /// out [rows, out] = start + spikes weight^T.
  void forward(const at::Tensor& weight, const at::Tensor& start, at::Tensor& out) const {
    if (!sparse_) return dense_product(spikes_.values(), weight.t(), start, out);
    const std::int64_t columns = weight.size(0), inputs = weight.size(1);
    AT_DISPATCH_FLOATING_TYPES(weight.scalar_type(), "spike_product", [&] {
      constexpr std::int64_t panel = kernels::kPanel<scalar_t>;
      const auto& kernels = kernels::kernels<scalar_t>();
      const at::Tensor panels =
          at::empty({(columns + panel - 1) / panel * inputs * panel}, weight.options());
      const kernels::Pack<scalar_t> pack{inputs,
                                         columns,
                                         weight.stride(1),
                                         weight.stride(0),
                                         weight.const_data_ptr<scalar_t>(),
                                         panels.data_ptr<scalar_t>()};
      kernels::for_ranges(inputs, [&](std::int64_t, std::int64_t begin, std::int64_t end) {
        kernels.pack(pack, begin, end);
      });
      const kernels::SpikeSum<scalar_t> sum{columns,
                                            inputs,
                                            words(spikes_.bits),
                                            panels.const_data_ptr<scalar_t>(),
                                            start.const_data_ptr<scalar_t>(),
                                            out.data_ptr<scalar_t>(),
                                            nullptr};
      for_even_ranges(before_, [&](std::int64_t begin, std::int64_t end) {
        std::vector<std::int32_t> scratch(kernels::spike_sum_scratch(inputs));
        auto mine = sum;
        mine.scratch = scratch.data();
        kernels.spike_sum(mine, begin, end);
      });
    });
  }

  /// The weight's gradient [out, in] from that of the rows, grad [rows, out].
  at::Tensor weight_gradient(const at::Tensor& grad) const {
    if (!sparse_) return at::mm(grad.t(), spikes_.values());
    const std::int64_t rows = spikes_.rows(), inputs = spikes_.width(), columns = grad.size(1);
    const std::int64_t blocks = (rows + kernels::kBlockRows - 1) / kernels::kBlockRows;
    std::vector<std::int64_t> places;
    for (std::int64_t block = 0; block < blocks; ++block) {
      places.push_back(before_[block * kernels::kBlockRows]);
    }
    std::vector<std::int32_t> starts(static_cast<std::size_t>(blocks * (inputs + 1)));
    std::vector<std::uint16_t> indices(static_cast<std::size_t>(before_.back()));
    at::Tensor out = at::empty({columns, inputs}, grad.options());
    AT_DISPATCH_FLOATING_TYPES(grad.scalar_type(), "spike_weight_gradient", [&] {
      const auto& kernels = kernels::kernels<scalar_t>();
      const kernels::TurnedLists lists{rows,          inputs,        words(spikes_.bits),
                                       places.data(), starts.data(), indices.data()};
      kernels::for_ranges(blocks, [&](std::int64_t, std::int64_t begin, std::int64_t end) {
        kernels.turn_lists(lists, begin, end);
      });
      const std::int64_t stripes =
          (columns + kernels::kStripe<scalar_t> - 1) / kernels::kStripe<scalar_t>;
      const std::int64_t ranges =
          std::min<std::int64_t>(inputs, (at::get_num_threads() + stripes - 1) / stripes);
      const kernels::WeightGradient<scalar_t> gradient{rows,
                                                       inputs,
                                                       columns,
                                                       ranges,
                                                       places.data(),
                                                       starts.data(),
                                                       indices.data(),
                                                       grad.const_data_ptr<scalar_t>(),
                                                       out.data_ptr<scalar_t>(),
                                                       nullptr};
      kernels::for_ranges(
          stripes * ranges, [&](std::int64_t, std::int64_t begin, std::int64_t end) {
            const at::Tensor scratch = at::empty(
                {(kernels::kBlockRows + inputs) * kernels::kStripe<scalar_t>}, grad.options());
            auto mine = gradient;
            mine.scratch = scratch.data_ptr<scalar_t>();
            kernels.weight_gradient(mine, begin, end);
          });
    });
    return out;
  }

 private:
  Spikes spikes_;
  bool sparse_ = false;
  std::vector<std::int64_t> before_;
};

/// Keeps a tensor out of autograd's sight among a function's arguments.
struct Destination {
  at::Tensor tensor;
};

/// Inputs: the spikes' handle and bits (or none), the groups' weights and biases. Output: currents.
class SpikeLinearFunction : public Function<SpikeLinearFunction> {
 public:
  static at::Tensor forward(AutogradContext* context, const at::Tensor& handle,
                            const std::optional<at::Tensor>& bits, at::TensorList parameters,
                            const std::vector<std::int64_t>& starts, bool bfloat16,
                            const Destination& destination) {
    const Spikes spikes{handle, bits.value_or(at::Tensor())};
    const std::size_t groups = parameters.size() / 2;
    at::Tensor out = destination.tensor;
    if (!out.defined()) {
      out = at::empty({spikes.rows(), parameters[0].size(0)}, handle.options());
    }
    for (std::size_t g = 0; g < groups; ++g) {
      const std::int64_t rows = starts[g + 1] - starts[g];
      if (rows == 0) continue;
      at::Tensor slice = out.narrow(0, starts[g], rows);
      GroupProduct(spikes.slice(starts[g], rows), !bits)
          .forward(rounded(parameters[g], bfloat16), parameters[groups + g], slice);
    }
    variable_list saved{bits ? *bits : handle};
    saved.insert(saved.end(), parameters.begin(), parameters.begin() + groups);
    context->save_for_backward(saved);
    context->saved_data["in bits"] = bits.has_value();
    context->saved_data["starts"] = starts;
    context->saved_data["bfloat16"] = bfloat16;
    return out;
  }

  static variable_list backward(AutogradContext* context, variable_list grads) {
    const auto saved = context->get_saved_variables();
    const auto starts = context->saved_data["starts"].toIntVector();
    const bool bfloat16 = context->saved_data["bfloat16"].toBool();
    const bool in_bits = context->saved_data["in bits"].toBool();
    const at::Tensor grad = grads[0].contiguous();
    const at::Tensor product_grad = rounded(grad, bfloat16);
    const std::int64_t inputs = saved[1].size(1);
    const Spikes spikes = in_bits ? Spikes::of_bits(saved[0], inputs, grad.scalar_type())
                                  : Spikes{saved[0], at::Tensor()};
    at::Tensor grad_spikes = at::empty({spikes.rows(), inputs}, grad.options());
    variable_list grad_weights, grad_biases;
    for (std::size_t g = 0; g + 1 < starts.size(); ++g) {
      const std::int64_t rows = starts[g + 1] - starts[g];
      const at::Tensor& weight = saved[1 + g];
      if (rows == 0) {
        grad_weights.push_back(at::zeros_like(weight));
        grad_biases.push_back(at::zeros({weight.size(0)}, weight.options()));
        continue;
      }
      const at::Tensor grad_rows = product_grad.narrow(0, starts[g], rows);
      at::Tensor slice = grad_spikes.narrow(0, starts[g], rows);
      dense_product(grad_rows, rounded(weight, bfloat16), at::Tensor(), slice);
      grad_weights.push_back(
          GroupProduct(spikes.slice(starts[g], rows), !in_bits).weight_gradient(grad_rows));
      grad_biases.push_back(grad.narrow(0, starts[g], rows).sum(0));
    }
    variable_list result{grad_spikes, at::Tensor()};
    result.insert(result.end(), grad_weights.begin(), grad_weights.end());
    result.insert(result.end(), grad_biases.begin(), grad_biases.end());
    result.resize(result.size() + 3);  // starts, bfloat16, destination
    return result;
  }
};

}  // namespace

at::Tensor spike_linear(const Spikes& spikes, const LinearGroups& groups,
                        const Precision& precision, const at::Tensor& out) {
  std::vector<at::Tensor> parameters = groups.weights;
  parameters.insert(parameters.end(), groups.biases.begin(), groups.biases.end());
  std::vector<std::int64_t> starts = groups.starts;
  if (starts.empty()) starts = {0, spikes.rows()};
  return SpikeLinearFunction::apply(
      spikes.handle, spikes.bits.defined() ? std::optional(spikes.bits) : std::nullopt,
      at::TensorList(parameters), starts, precision.bfloat16_products, Destination{out});
}

}  // namespace laterna::model
