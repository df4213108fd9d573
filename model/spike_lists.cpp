#include "model/spike_lists.h"

#include <ATen/ATen.h>
#include <ATen/Dispatch.h>

#include <vector>

#include "model/kernels/kernels.h"
#include "model/kernels/parallel.h"

namespace laterna::model {
namespace {

// Share of active inputs from which a dense product is taken: BLAS caught up between 20% and 30% in
// `laterna bench`'s runs on AVX-512.
constexpr double kDense = 0.2;

/// Cuts `lists` into ranges with about equally many places, so that threads share the work evenly.
template <typename Function>
void for_even_ranges(const std::int32_t* starts, std::int64_t lists, const Function& run) {
  const std::int64_t ranges = kernels::range_count(lists);
  const auto bound = [&](std::int64_t r) {
    if (r == ranges) return lists;
    // A list costs something even when it is empty: its row of the output is written.
    const std::int64_t total = starts[lists] - starts[0] + 4 * lists;
    std::int64_t low = 0, high = lists;
    while (low < high) {
      const std::int64_t middle = (low + high) / 2;
      if (starts[middle] - starts[0] + 4 * middle < total * r / ranges) {
        low = middle + 1;
      } else {
        high = middle;
      }
    }
    return low;
  };
  at::parallel_for(0, ranges, 1, [&](std::int64_t first, std::int64_t last) {
    for (std::int64_t r = first; r < last; ++r) run(bound(r), bound(r + 1));
  });
}

}  // namespace

SpikeLists SpikeLists::rows(std::int64_t first, std::int64_t count) const {
  return {starts.narrow(0, first, count + 1), indices, width};
}

SpikeLists SpikeLists::turned() const {
  const std::int64_t rows = starts.size(0) - 1;
  const auto* start = starts.const_data_ptr<std::int32_t>();
  const auto* index = indices.const_data_ptr<std::int32_t>();
  SpikeLists out{at::zeros({width + 1}, at::kInt), at::empty({start[rows] - start[0]}, at::kInt),
                 rows};
  auto* place = out.starts.data_ptr<std::int32_t>();
  for (auto i = start[0]; i < start[rows]; ++i) ++place[index[i] + 1];
  for (std::int64_t i = 0; i < width; ++i) place[i + 1] += place[i];
  std::vector<std::int32_t> next(place, place + width);
  auto* entry = out.indices.data_ptr<std::int32_t>();
  for (std::int64_t row = 0; row < rows; ++row) {
    for (auto i = start[row]; i < start[row + 1]; ++i) {
      entry[next[index[i]]++] = static_cast<std::int32_t>(row);
    }
  }
  return out;
}

SpikeLists list_spikes(const at::Tensor& spikes) {
  const std::int64_t rows = spikes.size(0), width = spikes.size(1);
  SpikeLists lists{at::Tensor(), at::Tensor(), width};
  if (!spikes.is_cpu()) return lists;
  lists.starts = at::empty({rows + 1}, at::kInt);
  auto* starts = lists.starts.data_ptr<std::int32_t>();
  AT_DISPATCH_FLOATING_TYPES(spikes.scalar_type(), "list_spikes", [&] {
    kernels::SpikeLists<scalar_t> a{width, spikes.const_data_ptr<scalar_t>(), starts + 1, starts,
                                    nullptr};
    const auto kernel = kernels::kernels<scalar_t>().list_spikes;
    const auto run = [&](std::int64_t, std::int64_t begin, std::int64_t end) {
      kernel(a, begin, end);
    };
    kernels::for_ranges(rows, run);
    std::int64_t places = 0;
    starts[0] = 0;
    for (std::int64_t row = 1; row <= rows; ++row) {
      places += starts[row];
      starts[row] = static_cast<std::int32_t>(places);
    }
    if (double(places) > kDense * double(rows) * double(width)) return;
    lists.indices = at::empty({places}, at::kInt);
    a.counts = nullptr;
    a.indices = lists.indices.data_ptr<std::int32_t>();
    kernels::for_ranges(rows, run);
  });
  return lists;
}

void sum_listed(const SpikeLists& lists, const at::Tensor& matrix, const at::Tensor& start,
                at::Tensor& out) {
  const std::int64_t rows = matrix.size(0), columns = matrix.size(1);
  AT_DISPATCH_FLOATING_TYPES(matrix.scalar_type(), "sum_listed", [&] {
    constexpr std::int64_t panel = kernels::kPanel<scalar_t>;
    const auto& kernels = kernels::kernels<scalar_t>();
    const at::Tensor panels =
        at::empty({(columns + panel - 1) / panel * rows * panel}, matrix.options());
    const kernels::Pack<scalar_t> pack{rows,
                                       columns,
                                       matrix.stride(0),
                                       matrix.stride(1),
                                       matrix.const_data_ptr<scalar_t>(),
                                       panels.data_ptr<scalar_t>()};
    kernels::for_ranges(rows, [&](std::int64_t, std::int64_t begin, std::int64_t end) {
      kernels.pack(pack, begin, end);
    });
    const kernels::SpikeSum<scalar_t> sum{
        columns,
        rows,
        lists.starts.const_data_ptr<std::int32_t>(),
        lists.indices.const_data_ptr<std::int32_t>(),
        panels.const_data_ptr<scalar_t>(),
        start.defined() ? start.const_data_ptr<scalar_t>() : nullptr,
        out.data_ptr<scalar_t>()};
    for_even_ranges(
        sum.starts, lists.starts.size(0) - 1,
        [&](std::int64_t begin, std::int64_t end) { kernels.spike_sum(sum, begin, end); });
  });
}

}  // namespace laterna::model
