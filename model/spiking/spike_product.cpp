#include "model/spiking/spike_product.h"

#include <ATen/ATen.h>
#include <ATen/CPUGeneratorImpl.h>
#include <ATen/Dispatch.h>

#include <algorithm>
#include <chrono>
#include <memory>
#include <numeric>
#include <vector>

#include "model/kernels/cpu/kernels.h"
#include "model/kernels/cpu/parallel.h"

namespace laterna::model {
namespace {

using kernels::kBlockRows;

/// Returns the number of spikes before each row, [rows + 1].
std::vector<std::int64_t> fired_before_rows(const at::Tensor& bits) {
  auto before = fired_of_rows(bits);
  before.insert(before.begin(), 0);
  std::partial_sum(before.begin(), before.end(), before.begin());
  return before;
}

/// Returns the estimated cost of all rows before each one, [rows + 1]. A row costs its spikes, at
/// most as much as a dense row, plus a constant for its output.
std::vector<std::int64_t> cost_before_rows(const Spikes& spikes, double dense) {
  constexpr std::int64_t kOutput = 4;
  const auto most = static_cast<std::int64_t>(std::clamp(dense, 0.0, 1.0) * double(spikes.width()));
  std::vector<std::int64_t> before{0};
  for (const auto fired : fired_of_rows(spikes.bits)) {
    before.push_back(before.back() + std::min(fired, most) + kOutput);
  }
  return before;
}

template <typename Real>
void product(const Spikes& spikes, const at::Tensor& weight, const at::Tensor& start,
             at::Tensor& out, double dense) {
  constexpr std::int64_t panel = kernels::kPanel<Real>;
  const auto& kernels = kernels::kernels<Real>();
  const std::int64_t columns = weight.size(0), inputs = weight.size(1);
  const at::Tensor panels =
      at::empty({(columns + panel - 1) / panel * inputs * panel}, weight.options());
  kernels::Pack<Real> pack{};
  pack.rows = inputs;
  pack.columns = columns;
  pack.row_stride = weight.stride(1);
  pack.column_stride = weight.stride(0);
  pack.matrix = weight.const_data_ptr<Real>();
  pack.panels = panels.data_ptr<Real>();
  kernels::for_ranges(inputs, [&](std::int64_t, std::int64_t begin, std::int64_t end) {
    kernels.pack(pack, begin, end);
  });
  kernels::SpikeSum<Real> sum{};
  sum.columns = columns;
  sum.matrix_rows = inputs;
  sum.spikes = words_in(spikes.bits);
  sum.panels = pack.panels;
  sum.start = start.const_data_ptr<Real>();
  sum.out = out.data_ptr<Real>();
  sum.dense_above = dense;
  kernels::for_even_ranges(
      cost_before_rows(spikes, dense), [&](std::int64_t begin, std::int64_t end) {
        const auto lists =
            std::make_unique_for_overwrite<std::int32_t[]>(kernels::spike_sum_lists(inputs));
        const auto values =
            std::make_unique_for_overwrite<Real[]>(kernels::kDenseBatch * kernels::kTileInputs);
        auto mine = sum;
        mine.lists = lists.get();
        mine.values = values.get();
        kernels.spike_sum(mine, begin, end);
      });
}

/// Returns the rows of a block, given that `fired` of `inputs` possible spikes fired: few enough
/// that a stripe of the block stays in the first-level cache, unless its lists would then be too
/// short.
std::int64_t rows_of_block(std::int64_t fired, std::int64_t inputs) {
  constexpr std::int64_t kLongEnough = 24, kLeast = 128;
  std::int64_t rows = kBlockRows;
  while (rows > kLeast && rows / 2 * fired >= kLongEnough * inputs) rows /= 2;
  return rows;
}

template <typename Real>
at::Tensor weight_gradient(const Spikes& spikes, const at::Tensor& grad, double dense) {
  const auto& kernels = kernels::kernels<Real>();
  const std::int64_t rows = spikes.rows(), inputs = spikes.width(), columns = grad.size(1);
  const auto before = fired_before_rows(spikes.bits);
  const std::int64_t block_rows = rows_of_block(before.back(), rows * inputs);
  const std::int64_t blocks = (rows + block_rows - 1) / block_rows;
  std::vector<std::int64_t> offsets;  // [blocks + 1]
  for (std::int64_t block = 0; block <= blocks; ++block) {
    offsets.push_back(before[std::min(block * block_rows, rows)]);
  }
  const auto list_offsets = std::make_unique_for_overwrite<std::int32_t[]>(blocks * (inputs + 1));
  const auto indices = std::make_unique_for_overwrite<std::uint16_t[]>(before.back());
  kernels::TransposedLists lists{};
  lists.rows = rows;
  lists.width = inputs;
  lists.block_rows = block_rows;
  lists.spikes = words_in(spikes.bits);
  lists.offsets = offsets.data();
  lists.list_offsets = list_offsets.get();
  lists.indices = indices.get();
  lists.dense_above = dense;
  kernels::for_ranges(blocks, [&](std::int64_t, std::int64_t begin, std::int64_t end) {
    kernels.transpose_lists(lists, begin, end);
  });
  constexpr std::int64_t stripe = kernels::kStripe<Real>;
  const std::int64_t stripes = (columns + stripe - 1) / stripe;
  at::Tensor out = at::empty({columns, inputs}, grad.options());
  kernels::WeightGradient<Real> gradient{};
  gradient.rows = rows;
  gradient.width = inputs;
  gradient.block_rows = block_rows;
  gradient.columns = columns;
  // With many threads, stripes of columns only would leave some threads idle.
  gradient.ranges = std::min<std::int64_t>(inputs, (at::get_num_threads() + stripes - 1) / stripes);
  gradient.offsets = offsets.data();
  gradient.list_offsets = list_offsets.get();
  gradient.indices = indices.get();
  gradient.spikes = lists.spikes;
  gradient.dense_above = dense;
  gradient.grad = grad.const_data_ptr<Real>();
  gradient.out = out.data_ptr<Real>();
  kernels::for_ranges(
      stripes * gradient.ranges, [&](std::int64_t, std::int64_t begin, std::int64_t end) {
        const at::Tensor scratch =
            at::empty({kernels::weight_gradient_scratch<Real>(inputs)}, grad.options());
        auto mine = gradient;
        mine.scratch = scratch.data_ptr<Real>();
        kernels.weight_gradient(mine, begin, end);
      });
  return out;
}

/// Returns the shortest time of a few runs, in seconds.
template <typename Work>
double seconds_of(const Work& work) {
  double least = 1;
  for (int run = 0; run < 10; ++run) {
    const auto began = std::chrono::steady_clock::now();
    work();
    const std::chrono::duration<double> taken = std::chrono::steady_clock::now() - began;
    least = std::min(least, taken.count());
  }
  return least;
}

/// Returns the density at which run(spikes, share) takes as long with lists as with dense
/// multiplication. The time with lists is linear in the density and is interpolated from two
/// measurements.
template <typename Run>
double crossover_of(std::int64_t rows, std::int64_t width, at::ScalarType dtype, const Run& run) {
  const auto at_density = [&](double density, double dense) {
    const auto random = at::make_generator<at::CPUGeneratorImpl>(1);
    const Spikes spikes = Spikes::of(at::rand({rows, width}, random).lt(density).to(dtype));
    return seconds_of([&] { run(spikes, dense); });
  };
  constexpr double kNever = 2, kAlways = -1, kFew = 0.05, kMany = 0.4;
  const double few = at_density(kFew, kNever), many = at_density(kMany, kNever);
  const double slope = (many - few) / (kMany - kFew), dense = at_density(kMany, kAlways);
  return slope > 0 ? std::max(0.0, kFew + (dense - few) / slope) : kNever;
}

/// Limits LibTorch to one thread during the lifetime of the object.
struct OneThread {
  OneThread() { at::set_num_threads(1); }
  ~OneThread() { at::set_num_threads(threads); }
  const int threads = at::get_num_threads();
};

}  // namespace

Crossover measure_crossover(at::ScalarType dtype) {
  const at::NoGradGuard no_grad;
  const OneThread one_thread;
  constexpr std::int64_t kRows = 256, kWidth = 384;
  const auto options = at::TensorOptions(dtype);
  const at::Tensor weight = at::full({kWidth, kWidth}, 0.5, options),
                   start = at::zeros({kWidth}, options);
  at::Tensor out = at::empty({kRows, kWidth}, options);
  Crossover found{};
  AT_DISPATCH_FLOATING_TYPES(dtype, "crossover", [&] {
    found.product = crossover_of(kRows, kWidth, dtype, [&](const Spikes& spikes, double dense) {
      product<scalar_t>(spikes, weight, start, out, dense);
    });
    found.weight_gradient = crossover_of(
        kRows, kWidth, dtype,
        [&](const Spikes& spikes, double dense) { weight_gradient<scalar_t>(spikes, out, dense); });
  });
  return found;
}

const Crossover& crossover(at::ScalarType dtype) {
  if (dtype == at::kDouble) {
    static const Crossover in_double = measure_crossover(at::kDouble);
    return in_double;
  }
  static const Crossover in_float = measure_crossover(at::kFloat);
  return in_float;
}

void spike_product(const Spikes& spikes, const at::Tensor& weight, const at::Tensor& start,
                   at::Tensor& out, const Crossover& from) {
  AT_DISPATCH_FLOATING_TYPES(weight.scalar_type(), "spike_product",
                             [&] { product<scalar_t>(spikes, weight, start, out, from.product); });
}

at::Tensor spike_weight_gradient(const Spikes& spikes, const at::Tensor& grad,
                                 const Crossover& from) {
  at::Tensor out;
  AT_DISPATCH_FLOATING_TYPES(grad.scalar_type(), "spike_weight_gradient", [&] {
    out = weight_gradient<scalar_t>(spikes, grad, from.weight_gradient);
  });
  return out;
}

}  // namespace laterna::model
