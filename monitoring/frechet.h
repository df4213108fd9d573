// The Frechet distance between two sets of features, taken as Gaussians (FID where the features are
// an image network's; Heusel et al., "GANs trained by a two time-scale update rule", 2017):
//   |mu1 - mu2|^2 + tr S1 + tr S2 - 2 tr sqrt(sqrt(S1) S2 sqrt(S1)).
// All in float64, by eigenvalues of a symmetric matrix: no square root of an unsymmetric matrix,
// which may come out complex. With S1 = F F' the matrix F' S2 F has the eigenvalues of
// sqrt(S1) S2 sqrt(S1); F has only the columns that S1 has a rank for, so that directions in which
// there is nothing but rounding do not enter: a square root would turn 1e-16 of it into 1e-8.
//
// The bits depend neither on the number of threads nor on that of ranks (one_thread_each.h). How
// far a distance can be trusted: frechet_errors.h.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>

namespace laterna::monitoring {

/// Mean and covariance of `count` feature vectors of dimension d.
struct Statistics {
  at::Tensor mean;         // [d] float64
  at::Tensor covariance;   // [d,d] float64, divided by count - 1
  std::int64_t count = 0;  // 0: not known
};

/// Of features [n,d], float32 or float64: the mean first, then centred products. Throws
/// data::InputError when they are not two-dimensional, n < 2, or a value is not finite.
Statistics statistics_of(const at::Tensor& features);

/// One side of a distance, prepared so that each distance to it costs one eigenvalue problem.
class FrechetReference {
 public:
  /// Throws data::InputError when the shapes do not fit each other, a value is not finite, or the
  /// covariance is none (a clearly negative eigenvalue).
  explicit FrechetReference(const Statistics& statistics);

  /// Never negative. Throws data::InputError for another dimension and for what is not finite.
  double distance(const Statistics& other) const;

  std::int64_t dimension() const { return mean_.size(0); }
  const at::Tensor& mean() const { return mean_; }      // [d]
  const at::Tensor& factor() const { return factor_; }  // F [d,r], r the covariance's rank
  double trace() const { return trace_; }               // of the covariance

 private:
  at::Tensor mean_, factor_;
  double trace_, largest_;  // largest_: the covariance's largest eigenvalue
};

double frechet_distance(const Statistics& a, const Statistics& b);

/// tr sqrt(M) of a symmetric matrix [r,r] of which the lower triangle is read. Eigenvalues up to
/// `noise`, the rounding error of M's entries, or up to that of the eigenvalue problem are zero.
double trace_of_root(const at::Tensor& matrix, double noise);

/// Rounding error of a symmetric eigenvalue problem over its largest eigenvalue; about 0.5 epsilon
/// is met at d = 1000.
inline constexpr double kEigenvalueNoise = 4 * 2.220446049250313e-16;

}  // namespace laterna::monitoring
