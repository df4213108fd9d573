// How far a Frechet distance can be trusted. It has two errors: it varies with the samples that
// happened to be drawn, and it is too large on average, by about c / n, since a covariance
// estimated from n samples is never exactly the true one. The bootstrap measures the first;
// FID-infinity (Chong and Forsyth, "Effectively unbiased FID and Inception score", 2020) removes
// the second.
//
// Resampling a sample adds that excess a second time: bootstrap distances lie around FID + c / n,
// and their plain percentiles would often exclude the FID itself. The interval is therefore that of
// the percentiles shifted so that the mean distance is the FID: it covers the expected FID of *this
// number* of samples.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <vector>

#include "monitoring/quality/frechet.h"

namespace laterna::monitoring {

/// Least number of samples that FID-infinity extrapolates from.
inline constexpr std::int64_t kLeastSamples = 20;

struct Interval {
  double low = 0, high = 0;
};

/// Distances from resamples of one set of features to one reference. A resample is given by how
/// often each sample is taken, so it needs no copy of the features.
class FrechetResampler {
 public:
  /// Keeps `features` [n,d], n >= 2, and their projection [n,r] in float64. Throws data::InputError
  /// as statistics_of() and FrechetReference::distance() do.
  FrechetResampler(FrechetReference reference, const at::Tensor& features);

  /// Returns the distance of the resample that holds sample i times[i] times, at least two in all.
  double distance(const std::vector<std::int32_t>& times) const;

  /// Returns the 95% interval of the distance from `replicas` bootstrap resamples.
  Interval interval(std::int64_t replicas) const;

  /// Returns how many replicas are affordable: 1000 at small dimensions (seconds), down to 50 at
  /// 10,000 x 2048 and above (minutes). A replica costs (n + r) r^2 multiplications; the standard
  /// error of the interval's bounds is 2% of its width at 1000 replicas and 10% at 50.
  std::int64_t affordable_replicas() const;

  /// Returns the distance extrapolated to infinitely many samples by a line fitted to distances
  /// over 1/m, for 15 sizes m from about n/10 to n. Sizes below 2d are left out, since their excess
  /// is not c/m, but the smallest size is at most n/2. The distance at size m is the mean over the
  /// n/m disjoint random subsets, so that all sizes are about equally certain. May be slightly
  /// negative where the true distance is 0. Throws data::InputError for fewer than kLeastSamples.
  double infinity() const;

 private:
  FrechetReference reference_;
  at::Tensor features_;   // [n,d] as given
  at::Tensor centre_;     // [d] mean of the features
  at::Tensor projected_;  // [n,r] float64: (features - centre) F
  at::Tensor squares_;    // [n] float64: |features - centre|^2
};

}  // namespace laterna::monitoring
