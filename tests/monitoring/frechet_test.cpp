// The Frechet distance against closed forms, and its error estimates against simulations.
#include "monitoring/quality/frechet.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "data/error.h"
#include "monitoring/quality/frechet_errors.h"
#include "monitoring/quality/one_thread_each.h"
#include "tests/data/scratch_folder.h"
#include "tests/monitoring/features.h"

namespace laterna::monitoring {
namespace {

using data::expect_error;

at::Tensor vector(std::vector<double> values) { return at::tensor(values, at::kDouble); }

Statistics gaussian(const at::Tensor& mean, const at::Tensor& covariance) {
  return {mean, covariance, 0};
}

Statistics diagonal(const at::Tensor& mean, const at::Tensor& variances) {
  return gaussian(mean, at::diag(variances));
}

at::Tensor normal(std::int64_t n, std::int64_t d, std::uint32_t index) {
  return normal_features(n, d, index);
}

TEST(Frechet, MatchesKnownDistancesOfGaussians) {
  const auto zero = at::zeros({2048}, at::kDouble), one = at::ones({2048}, at::kDouble);
  EXPECT_NEAR(frechet_distance(diagonal(zero, one), diagonal(one, one)), 2048, 1e-9);

  const auto s1 = vector({2, 1, 1, 2}).view({2, 2}), s2 = at::diag(vector({1, 4}));
  EXPECT_NEAR(frechet_distance(gaussian(vector({1, 0}), s1), gaussian(vector({0, 2}), s2)),
              14 - 2 * std::sqrt(10 + 2 * std::sqrt(12)), 1e-9);
  EXPECT_NEAR(frechet_distance(gaussian(vector({1, 0}), s1), gaussian(vector({0, 2}), s2)),
              5.771220447654, 1e-9);

  const auto variances = at::arange(1, 65, at::kDouble), origin = at::zeros({64}, at::kDouble);
  EXPECT_NEAR(frechet_distance(diagonal(origin, variances), diagonal(origin, 4 * variances)), 2080,
              1e-9);
}

// tr sqrt of rank-one covariances aa' and bb' is |a.b|. The other eigenvalues are rounding errors
// of either sign, of which a square root would make NaN or 1e-8.
TEST(Frechet, MatchesKnownDistancesOfRankOneCovariances) {
  const auto rank_one = [](const at::Tensor& mean, const at::Tensor& a) {
    return gaussian(mean, at::outer(a, a));
  };
  const auto mean_1 = vector({1, 2, 3}), mean_2 = vector({-2, 0, 1});
  const std::vector<std::pair<at::Tensor, at::Tensor>> cases = {
      {vector({1, 1, 1}), vector({1, 1, 1})},  {vector({1, 2, 3}), vector({3, 2, 1})},
      {vector({1, 2, 3}), vector({-2, 0, 1})}, {vector({1, 1, 0}), vector({1, -1, 0})},
      {vector({1, 2, 3}), vector({3, 0, -1})}, {vector({1e3, 2e3, 3e3}), vector({0, 0, 1e-3})},
      {vector({1, 2, 3}), vector({0, 0, 0})}};
  for (const auto& [a, b] : cases) {
    const double expected = (17 + a.dot(a) + b.dot(b) - 2 * a.dot(b).abs()).item<double>();
    const Statistics s1 = rank_one(mean_1, a), s2 = rank_one(mean_2, b);
    EXPECT_NEAR(frechet_distance(s1, s2), expected, 1e-9 * std::max(1.0, expected)) << a << b;
    EXPECT_NEAR(frechet_distance(s2, s1), expected, 1e-9 * std::max(1.0, expected)) << a << b;
  }
}

TEST(Frechet, IsSymmetricAndInvariantToRotation) {
  const at::Tensor x = normal(500, 40, 0) * at::linspace(0.01, 2, 40, at::kDouble);
  const at::Tensor y = normal(300, 40, 1) * at::linspace(1, 0.1, 40, at::kDouble) + 0.3;
  const Statistics a = statistics_of(x), b = statistics_of(y);
  const double distance = frechet_distance(a, b);
  EXPECT_GT(distance, 1);
  EXPECT_NEAR(frechet_distance(b, a), distance, 1e-9);
  EXPECT_NEAR(frechet_distance(a, a), 0, 1e-9);
  const at::Tensor rotation = std::get<0>(at::linalg_qr(normal(40, 40, 2)));
  const auto turned = [&](const at::Tensor& features) {
    return statistics_of(features.mm(rotation) + 5);
  };
  EXPECT_NEAR(frechet_distance(turned(x), turned(y)), distance, 1e-9);
}

TEST(Frechet, StatisticsMatchTheDefinition) {
  const at::Tensor x = (normal(2500, 600, 3) + 1e4).to(at::kFloat);  // raw moments lose precision
  const Statistics s = statistics_of(x);
  const at::Tensor wide = x.to(at::kDouble);
  EXPECT_TRUE(at::allclose(s.mean, wide.mean(0), 1e-14));
  EXPECT_TRUE(at::allclose(s.covariance, at::cov(wide.t()), 1e-11, 1e-12));
  EXPECT_TRUE(at::equal(s.covariance, s.covariance.t()));
  EXPECT_EQ(s.count, 2500);
}

// For centred X and Y, tr sqrt(S1 S2) is the nuclear norm of X Y' over both factors sqrt(n - 1).
TEST(Frechet, MatchesKnownDistanceOfFewerSamplesThanDimensions) {
  const at::Tensor scale = at::logspace(0, -3, 200, 10, at::kDouble);
  const at::Tensor x = normal(50, 200, 4) * scale, y = normal(120, 200, 5) * scale;
  const at::Tensor cx = x - x.mean(0), cy = y - y.mean(0);
  const double roots =
      std::get<1>(at::linalg_svd(cx.mm(cy.t()))).sum().item<double>() / std::sqrt(49.0 * 119.0);
  const double expected = (x.mean(0) - y.mean(0)).square().sum().item<double>() +
                          cx.square().sum().item<double>() / 49 +
                          cy.square().sum().item<double>() / 119 - 2 * roots;
  EXPECT_NEAR(frechet_distance(statistics_of(x), statistics_of(y)), expected, 1e-9);
  EXPECT_NEAR(frechet_distance(statistics_of(y), statistics_of(x)), expected, 1e-9);
  EXPECT_NEAR(FrechetResampler(FrechetReference(statistics_of(x)), y)
                  .distance(std::vector<std::int32_t>(120, 1)),
              expected, 1e-9);
}

TEST(Frechet, RefusesInvalidInput) {
  const at::Tensor x = normal(20, 5, 6);
  const Statistics s = statistics_of(x);
  expect_error<data::InputError>([&] { statistics_of(x.slice(0, 0, 1)); }, {"[1, 5]", "two"});
  expect_error<data::InputError>([&] { statistics_of(x[0]); }, {"[5]"});
  expect_error<data::InputError>([&] { frechet_distance(s, statistics_of(normal(20, 4, 6))); },
                                 {"dimension 4", "dimension 5", "extractor"});
  expect_error<data::InputError>([&] { FrechetResampler(FrechetReference(s), normal(9, 4, 6)); },
                                 {"[9, 4]", "dimension 5"});
  at::Tensor broken = x.clone();
  for (const double bad : {std::nan(""), std::numeric_limits<double>::infinity()}) {
    broken[3][2] = bad;
    expect_error<data::InputError>([&] { statistics_of(broken); }, {"features", "finite"});
    expect_error<data::InputError>([&] { FrechetResampler(FrechetReference(s), broken); },
                                   {"features", "finite"});
    Statistics damaged{s.mean, s.covariance.clone(), 20};
    damaged.covariance[1][1] = bad;
    expect_error<data::InputError>([&] { frechet_distance(s, damaged); }, {"finite"});
    expect_error<data::InputError>([&] { frechet_distance(damaged, s); }, {"finite"});
  }
  expect_error<data::InputError>(
      [&] {
        FrechetReference({s.mean, -s.covariance, 20});
      },
      {"covariance", "eigenvalue"});
  expect_error<data::InputError>([&] { FrechetReference({s.mean, normal(5, 4, 0), 20}); }, {"5x4"});
  expect_error<data::InputError>(
      [&] { FrechetResampler(FrechetReference(s), x.slice(0, 0, 19)).infinity(); }, {"19", "20"});
}

TEST(FrechetResampler, CountsEqualRepeatedSamples) {
  const at::Tensor x = normal(90, 12, 7) + 0.2, reference = normal(150, 12, 8);
  const FrechetReference to(statistics_of(reference));
  const FrechetResampler resampler(to, x.to(at::kFloat));
  std::vector<std::int32_t> times(90);
  std::vector<std::int64_t> rows;
  for (int i = 0; i < 90; ++i) {
    times[i] = i * 7 % 4;
    rows.insert(rows.end(), times[i], i);
  }
  const auto repeated = x.to(at::kFloat).index_select(0, at::tensor(rows));
  EXPECT_NEAR(resampler.distance(times), to.distance(statistics_of(repeated)), 1e-9);
}

// Over many samples of one distribution, the intervals are as wide as the distances scatter, and
// most contain the expected distance of this number of samples.
TEST(FrechetResampler, IntervalsCoverTheExpectedDistance) {
  constexpr int kSamples = 120;
  constexpr std::int64_t kCount = 400, kDimension = 8;
  const FrechetReference reference(
      diagonal(at::zeros({kDimension}, at::kDouble), at::ones({kDimension}, at::kDouble)));
  std::vector<double> distances;
  std::vector<Interval> intervals;
  for (int i = 0; i < kSamples; ++i) {
    const at::Tensor x = normal(kCount, kDimension, 100 + i) * 1.5 + 0.2;
    distances.push_back(reference.distance(statistics_of(x)));
    intervals.push_back(FrechetResampler(reference, x).interval(100));
    EXPECT_LT(intervals[i].low, distances[i]);
    EXPECT_GT(intervals[i].high, distances[i]);
  }
  const at::Tensor all = at::tensor(distances, at::kDouble);
  const double mean = all.mean().item<double>(), deviation = all.std().item<double>();
  int covered = 0;
  double width = 0;
  for (const auto& [low, high] : intervals) {
    covered += low <= mean && mean <= high;
    width += (high - low) / kSamples;
  }
  EXPECT_GE(covered, kSamples * 0.85);
  EXPECT_NEAR(width / (2 * 1.96 * deviation), 1, 0.2);
}

// With few samples in many dimensions, every resample has a larger distance than the sample itself.
TEST(FrechetResampler, IntervalContainsTheDistanceInManyDimensions) {
  const FrechetReference reference(
      diagonal(at::zeros({60}, at::kDouble), at::ones({60}, at::kDouble)));
  const at::Tensor x = normal(150, 60, 200);
  const double distance = reference.distance(statistics_of(x));
  const Interval interval = FrechetResampler(reference, x).interval(100);
  EXPECT_LT(interval.low, distance);
  EXPECT_GT(interval.high, distance);
  EXPECT_LT(interval.high - interval.low, distance / 2);
}

// Compares means over many samples, since the distance of a single sample also varies by chance.
TEST(FrechetResampler, InfinityRemovesTheExcess) {
  constexpr int kSamples = 40;
  const FrechetReference reference(
      diagonal(at::zeros({16}, at::kDouble), at::ones({16}, at::kDouble)));
  for (const auto& [scale, shift] :
       {std::pair(1.0, 0.0), std::pair(1.0, 0.3), std::pair(1.5, 0.3)}) {
    const double truth = 16 * ((scale - 1) * (scale - 1) + shift * shift);
    double fid = 0, infinity = 0;
    for (int i = 0; i < kSamples; ++i) {
      const at::Tensor x = normal(500, 16, 300 + i) * scale + shift;
      fid += reference.distance(statistics_of(x)) / kSamples;
      infinity += FrechetResampler(reference, x).infinity() / kSamples;
    }
    EXPECT_GT(fid - truth, 0.1);
    EXPECT_LT(std::abs(infinity - truth), 0.25 * (fid - truth)) << infinity << " " << fid;
  }
}

TEST(FrechetResampler, UsesFewerReplicasWhereTheyCostMore) {
  const FrechetReference small(statistics_of(normal(300, 128, 11)));
  EXPECT_EQ(FrechetResampler(small, normal(5000, 128, 12)).affordable_replicas(), 1000);
  const FrechetReference large(statistics_of(normal(1200, 1100, 11)));
  const auto count = FrechetResampler(large, normal(2000, 1100, 12)).affordable_replicas();
  EXPECT_GT(count, 50);
  EXPECT_LT(count, 1000);
}

TEST(Frechet, IsBitIdenticalOnAnyNumberOfThreads) {
  const at::Tensor x = (normal(3000, 520, 13) + 0.1).to(at::kFloat), y = normal(700, 520, 14);
  const auto [one, three] = with_one_and_three_threads([&] {
    const Statistics of_x = statistics_of(x);
    const FrechetReference reference(of_x);
    const FrechetResampler resampler(reference, y);
    const Interval interval = resampler.interval(5);
    return at::cat({of_x.mean, of_x.covariance.flatten(),
                    vector({reference.distance(statistics_of(y)), interval.low, interval.high,
                            resampler.infinity()})});
  });
  EXPECT_TRUE(at::equal(one, three));
}

TEST(OneThreadEach, RethrowsTheFirstFailure) {
  for (const int threads : {1, 3}) {
    at::set_num_threads(threads);
    std::vector<int> done(20);
    expect_error<data::InputError>(
        [&] {
          OneThreadEach().each(20, [&](std::int64_t i) {
            done[i] = at::get_num_threads();
            if (i == 7 || i == 13) throw data::InputError("piece " + std::to_string(i));
          });
        },
        {"piece 7"});
    EXPECT_EQ(std::vector<int>(done.begin(), done.begin() + 8), std::vector<int>(8, 1));
    // A single thread starts no piece after the failure; other threads may be ahead of it.
    if (threads == 1) {
      EXPECT_EQ(std::vector<int>(done.begin() + 8, done.end()), std::vector<int>(12, 0));
    }
    EXPECT_EQ(at::get_num_threads(), threads);
  }
}

}  // namespace
}  // namespace laterna::monitoring
