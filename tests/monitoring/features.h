// Helpers for tests of FID, KID, precision and recall: reproducible random features.
#pragma once

#include <ATen/ATen.h>
#include <ATen/Parallel.h>

#include <vector>

#include "data/philox.h"

namespace laterna::monitoring {

/// Returns standard normal numbers [n,d] in float64, different for each `index`.
inline at::Tensor normal_features(std::int64_t n, std::int64_t d, std::uint32_t index) {
  at::Tensor features = at::empty({n, d}, at::kDouble);
  data::fill_normal(features.data_ptr<double>(), n * d, 1, data::Stream::noise, 0, index);
  return features;
}

/// Returns the results of `figure` with LibTorch at 1 and at 3 threads.
template <typename Figure>
auto with_one_and_three_threads(Figure figure) {
  const int before = at::get_num_threads();
  at::set_num_threads(1);
  const auto one = figure();
  at::set_num_threads(3);
  const auto three = figure();
  EXPECT_EQ(at::get_num_threads(), 3) << "the number of threads was not restored";
  at::set_num_threads(before);
  return std::pair(one, three);
}

}  // namespace laterna::monitoring
