// Precision and recall of generated images (Kynkaanniemi et al., "Improved precision and recall
// metric for assessing generative models", 2019). The manifold of a set of features is the union of
// balls around them, each reaching to its k-th nearest neighbour. Precision: the share of generated
// samples on the reference's manifold (are they real?); recall: the share of reference samples on
// the generated manifold (is everything there?). The bits depend neither on the number of threads
// nor on that of ranks.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>

namespace laterna::monitoring {

struct PrecisionRecall {
  double precision = 0, recall = 0;
};

/// Both figures depend on how densely the sides are sampled, so the same number of each is taken at
/// random: min(most, n_generated, n_reference). features [n,d]; distances in float64. Throws
/// data::InputError for other shapes, no more than k samples, or what is not finite.
PrecisionRecall precision_recall(const at::Tensor& generated, const at::Tensor& reference,
                                 std::int64_t k = 3, std::int64_t most = 10000);

}  // namespace laterna::monitoring
