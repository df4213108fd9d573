// Kernel distance, precision and recall against naive loops, and on clouds with known results.
#include "monitoring/quality/manifold.h"

#include <gtest/gtest.h>

#include <cmath>

#include "data/error.h"
#include "monitoring/quality/kernel_distance.h"
#include "tests/data/scratch_folder.h"
#include "tests/monitoring/features.h"

namespace laterna::monitoring {
namespace {

using data::expect_error;

at::Tensor cloud(std::int64_t n, std::uint32_t index) { return normal_features(n, 6, index); }

double naive_kernel_distance(const at::Tensor& a, const at::Tensor& b) {
  const auto kernel = [](const at::Tensor& x, const at::Tensor& y) {
    return std::pow(x.dot(y).item<double>() / double(x.size(0)) + 1, 3);
  };
  const std::int64_t n = a.size(0);
  double within = 0, between = 0;
  for (std::int64_t i = 0; i < n; ++i) {
    for (std::int64_t j = 0; j < n; ++j) {
      if (i != j) within += kernel(a[i], a[j]) + kernel(b[i], b[j]);
      between += kernel(a[i], b[j]);
    }
  }
  return within / double(n * (n - 1)) - 2 * between / double(n * n);
}

TEST(KernelDistance, MatchesTheUnbiasedEstimate) {
  const at::Tensor a = cloud(40, 0), b = cloud(40, 1) * 1.3 + 0.5;
  const KernelDistance whole = kernel_distance(a, b, 3, 40);
  EXPECT_NEAR(whole.mean, naive_kernel_distance(a, b), 1e-12);
  EXPECT_NEAR(whole.deviation, 0, 1e-12);  // each subset is the whole set
}

TEST(KernelDistance, IsAboutZeroForEqualDistributions) {
  const at::Tensor a = cloud(3000, 2), b = cloud(3000, 3);
  const KernelDistance same = kernel_distance(a, b, 50, 300);
  EXPECT_LT(std::abs(same.mean), 3 * same.deviation / std::sqrt(10));
  EXPECT_GT(same.deviation, 0);
  const KernelDistance other = kernel_distance(a, b + 0.6, 50, 300);
  EXPECT_GT(other.mean, 5 * std::abs(same.mean));
  EXPECT_GT(other.mean, 5 * other.deviation);
}

TEST(KernelDistance, RefusesInvalidInput) {
  at::Tensor a = cloud(9, 4);
  expect_error<data::InputError>([&] { kernel_distance(a, a.slice(1, 0, 5)); }, {"[9, 5]"});
  expect_error<data::InputError>([&] { kernel_distance(a, a.slice(0, 0, 1)); }, {"[1, 6]"});
  a[1][1] = std::nan("");
  expect_error<data::InputError>([&] { kernel_distance(a, cloud(9, 5)); }, {"finite"});
}

/// Returns the share of `points` that lie in a ball around a point of `from`, pair by pair.
double naive_share(const at::Tensor& points, const at::Tensor& from, std::int64_t k) {
  std::vector<double> reach;
  for (std::int64_t i = 0; i < from.size(0); ++i) {
    const at::Tensor to_all = (from - from[i]).norm(2, 1);
    reach.push_back(std::get<0>(to_all.sort())[k].item<double>());  // index 0 is itself
  }
  std::int64_t inside = 0;
  for (std::int64_t i = 0; i < points.size(0); ++i) {
    bool any = false;
    for (std::int64_t j = 0; j < from.size(0); ++j) {
      any = any || (points[i] - from[j]).norm().item<double>() <= reach[j];
    }
    inside += any;
  }
  return double(inside) / double(points.size(0));
}

TEST(PrecisionRecall, MatchesTheDefinition) {
  const at::Tensor real = cloud(300, 6), made = cloud(300, 7) * 0.6 + 0.4;
  const PrecisionRecall found = precision_recall(made.to(at::kFloat), real);
  EXPECT_DOUBLE_EQ(found.precision, naive_share(made, real, 3));
  EXPECT_DOUBLE_EQ(found.recall, naive_share(real, made, 3));
  EXPECT_LT(found.recall, found.precision);  // generated samples vary too little
}

TEST(PrecisionRecall, MatchesKnownResultsOfClouds) {
  const at::Tensor real = cloud(600, 8) + 1e3, far = cloud(600, 9);
  const PrecisionRecall disjoint = precision_recall(far, real),
                        equal = precision_recall(real, real);
  EXPECT_EQ(disjoint.precision, 0);
  EXPECT_EQ(disjoint.recall, 0);
  EXPECT_EQ(equal.precision, 1);
  EXPECT_EQ(equal.recall, 1);
  const at::Tensor half = at::cat({real.slice(0, 0, 300), far.slice(0, 0, 300)});
  EXPECT_EQ(precision_recall(half, real).precision, 0.5);
  EXPECT_GT(precision_recall(half, real).recall, 0.9);
  EXPECT_EQ(precision_recall(real, half).recall, 0.5);
}

TEST(PrecisionRecall, DrawsTheSameNumberFromBothSets) {
  const at::Tensor real = cloud(900, 10), made = cloud(200, 11);
  const PrecisionRecall all = precision_recall(made, real),
                        few = precision_recall(made, real, 3, 5);
  EXPECT_NEAR(all.precision, all.recall, 0.2);  // not true of 900 against 200
  EXPECT_EQ(few.precision * 5, std::round(few.precision * 5));
}

TEST(PrecisionRecall, RefusesInvalidInput) {
  at::Tensor a = cloud(9, 12);
  expect_error<data::InputError>([&] { precision_recall(a, a.slice(1, 0, 5)); }, {"[9, 5]"});
  expect_error<data::InputError>([&] { precision_recall(a.slice(0, 0, 3), a); }, {"[3, 6]", "3"});
  a[8][0] = std::nan("");
  expect_error<data::InputError>([&] { precision_recall(a, cloud(9, 13)); }, {"finite"});
}

TEST(KernelDistance, AndPrecisionAreBitIdenticalOnAnyNumberOfThreads) {
  const at::Tensor a = normal_features(1500, 70, 14).to(at::kFloat);
  const at::Tensor b = normal_features(1100, 70, 15).to(at::kFloat) * 1.1;
  const auto [one, three] = with_one_and_three_threads([&] {
    const KernelDistance kernel = kernel_distance(a, b, 6);
    const PrecisionRecall manifold = precision_recall(a, b);
    return std::vector{kernel.mean, kernel.deviation, manifold.precision, manifold.recall};
  });
  EXPECT_EQ(one, three);
}

}  // namespace
}  // namespace laterna::monitoring
