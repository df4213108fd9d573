// Frechet distance between two sets of features, modelled as Gaussians (FID where an image network
// computes the features; Heusel et al., "GANs trained by a two time-scale update rule", 2017):
//   |mu1 - mu2|^2 + tr S1 + tr S2 - 2 tr sqrt(sqrt(S1) S2 sqrt(S1)).
// All computation is in float64 and uses eigenvalues of a symmetric matrix, since the square root
// of an unsymmetric matrix may come out complex. With S1 = F F', the matrix F' S2 F has the
// eigenvalues of sqrt(S1) S2 sqrt(S1). F has as many columns as S1 has rank: directions that hold
// only rounding error are left out, because a square root would turn an error of 1e-16 into 1e-8.
//
// The result has the same bits on any number of threads and ranks (one_thread_each.h).
// frechet_errors.h estimates how far a distance can be trusted.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>

namespace laterna::monitoring {

/// Mean and covariance of `count` feature vectors of dimension d.
struct Statistics {
  at::Tensor mean;         // [d] float64
  at::Tensor covariance;   // [d,d] float64, divided by count - 1
  std::int64_t count = 0;  // 0 when unknown
};

/// Computes the statistics of features [n,d], float32 or float64: the mean first, then centred
/// products. Throws data::InputError when `features` is not two-dimensional, n < 2, or a value is
/// not finite.
Statistics statistics_of(const at::Tensor& features);

/// A reference Gaussian, prepared so that each distance to it costs one eigenvalue problem.
class FrechetReference {
 public:
  /// Throws data::InputError when the shapes do not match, a value is not finite, or `covariance`
  /// is not a covariance matrix (it has a clearly negative eigenvalue).
  explicit FrechetReference(const Statistics& statistics);

  /// Returns the distance to `other`, never negative. Throws data::InputError when `other` has
  /// another dimension or a value is not finite.
  double distance(const Statistics& other) const;

  std::int64_t dimension() const { return mean_.size(0); }
  const at::Tensor& mean() const { return mean_; }      // [d]
  const at::Tensor& factor() const { return factor_; }  // F [d,r], r = rank of the covariance
  double trace() const { return trace_; }               // of the covariance

 private:
  at::Tensor mean_, factor_;
  double trace_, largest_;  // largest_: the covariance's largest eigenvalue
};

/// Returns the Frechet distance of a and b; errors as in FrechetReference.
double frechet_distance(const Statistics& a, const Statistics& b);

/// Returns tr sqrt(M) of a symmetric matrix M [r,r], of which only the lower triangle is read.
/// Eigenvalues count as zero up to `noise` (the rounding error of M's entries) and up to the
/// rounding error of the eigenvalue problem.
double trace_of_root(const at::Tensor& matrix, double noise);

/// Bound of the rounding error of a symmetric eigenvalue problem, relative to the largest
/// eigenvalue: 4 epsilon, where about 0.5 epsilon is observed at d = 1000.
inline constexpr double kEigenvalueNoise = 4 * 2.220446049250313e-16;

}  // namespace laterna::monitoring
