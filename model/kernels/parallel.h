// Shares a kernel's items out among the threads: as many equal ranges as there are threads, so that
// sums over the ranges' partial results depend on the number of threads alone, not on timing.
#pragma once

#include <ATen/Parallel.h>

#include <algorithm>
#include <cstdint>

namespace laterna::kernels {

/// How many ranges `items` are cut into.
inline std::int64_t range_count(std::int64_t items) {
  return std::max<std::int64_t>(1, std::min<std::int64_t>(items, at::get_num_threads()));
}

/// run(range, begin, end) for each range.
template <typename Function>
void for_ranges(std::int64_t items, const Function& run) {
  const std::int64_t ranges = range_count(items);
  at::parallel_for(0, ranges, 1, [&](std::int64_t first, std::int64_t last) {
    for (std::int64_t r = first; r < last; ++r) {
      run(r, items * r / ranges, items * (r + 1) / ranges);
    }
  });
}

}  // namespace laterna::kernels
