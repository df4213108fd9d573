// How far a Frechet distance can be trusted. Two errors: it varies with the samples that happened
// to be drawn, and it is too large on average, by about c / n, since a covariance from n samples is
// never quite the true one. The bootstrap measures the first; FID-infinity (Chong and Forsyth,
// "Effectively unbiased FID and Inception score", 2020) takes the second away.
//
// A resample of a sample shows that excess once more, so its distances lie around FID + c / n, and
// their plain percentiles would often leave out the FID itself. So the interval is that of the
// percentiles moved to have their mean at the FID: it covers the expected FID of *this number* of
// samples.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <vector>

#include "monitoring/frechet.h"

namespace laterna::monitoring {

/// What FID-infinity extrapolates from, at least.
inline constexpr std::int64_t kLeastSamples = 20;

struct Interval {
  double low = 0, high = 0;
};

/// Distances of resamples of one set of features to one reference. A resample is how often each
/// sample is taken: no features are copied.
class FrechetResampler {
 public:
  /// features [n,d], n >= 2; held, and their projection [n,r] in float64 beside them. Throws
  /// data::InputError as statistics_of() and distance() do.
  FrechetResampler(FrechetReference reference, const at::Tensor& features);

  /// The distance of the resample that holds sample i times[i] times; two samples at least.
  double distance(const std::vector<std::int32_t>& times) const;

  /// 95% interval of the distance, from `replicas` bootstrap resamples.
  Interval interval(std::int64_t replicas) const;

  /// A replica costs (n + r) r^2 multiplications, and the interval's bounds have a standard error
  /// of 2% of its width at 1000 replicas, of a tenth at 50. So 1000 at small dimensions (seconds);
  /// at 10,000 x 2048 and above 50 (minutes).
  std::int64_t affordable_replicas() const;

  /// The distance extrapolated to infinitely many samples: the line through distances over 1/m, for
  /// 15 sizes m from about n/10 (but not below 2d, where the excess is no longer c/m, unless that
  /// is over n/2) to n. At size m the mean over the n/m disjoint random subsets, so that all sizes
  /// are about equally certain. May be slightly negative where the true distance is 0. Throws
  /// data::InputError for fewer than kLeastSamples.
  double infinity() const;

 private:
  FrechetReference reference_;
  at::Tensor features_;   // [n,d] as given
  at::Tensor centre_;     // [d] their mean
  at::Tensor projected_;  // [n,r] float64: (features - centre) F
  at::Tensor squares_;    // [n] float64: |features - centre|^2
};

}  // namespace laterna::monitoring
