// Divides a kernel's items among threads: one range per thread, of equal length or, where the cost
// depends on the spikes, of equal estimated cost. The ranges, and thus sums of their partial
// results, depend only on the items and the number of threads, not on timing.
#pragma once

#include <ATen/Parallel.h>

#include <algorithm>
#include <cstdint>
#include <vector>

namespace laterna::kernels {

/// Returns the number of ranges that `items` are divided into.
inline std::int64_t range_count(std::int64_t items) {
  return std::max<std::int64_t>(1, std::min<std::int64_t>(items, at::get_num_threads()));
}

/// Calls run(range, begin, end) for each range, in parallel.
template <typename Function>
void for_ranges(std::int64_t items, const Function& run) {
  const std::int64_t ranges = range_count(items);
  at::parallel_for(0, ranges, 1, [&](std::int64_t first, std::int64_t last) {
    for (std::int64_t r = first; r < last; ++r) {
      run(r, items * r / ranges, items * (r + 1) / ranges);
    }
  });
}

/// Divides items into ranges of about equal cost and calls run(begin, end) for each, in parallel.
/// `before`: the cost of all items before each one, [items + 1].
template <typename Function>
void for_even_ranges(const std::vector<std::int64_t>& before, const Function& run) {
  const std::int64_t items = std::ssize(before) - 1, ranges = range_count(items);
  const auto bound = [&](std::int64_t r) {
    if (r == ranges) return items;
    const auto at = std::lower_bound(before.begin(), before.end(), before.back() * r / ranges);
    return std::min<std::int64_t>(at - before.begin(), items);
  };
  at::parallel_for(0, ranges, 1, [&](std::int64_t first, std::int64_t last) {
    for (std::int64_t r = first; r < last; ++r) run(bound(r), bound(r + 1));
  });
}

}  // namespace laterna::kernels
