// Precision and recall of generated images (Kynkaanniemi et al., "Improved precision and recall
// metric for assessing generative models", 2019). The manifold of a set of features is the union of
// balls around the features, each reaching to the k-th nearest neighbour. Precision is the share of
// generated samples on the reference manifold (do they look real?), recall the share of reference
// samples on the generated manifold (is all of the data covered?). The result has the same bits on
// any number of threads and ranks.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>

namespace laterna::monitoring {

struct PrecisionRecall {
  double precision = 0, recall = 0;
};

/// Returns precision and recall of features [n,d]; distances are float64. Both depend on how
/// densely the sets are sampled, so the same number is drawn from each at random: min(most,
/// n_generated, n_reference). Throws data::InputError for other shapes, at most k samples, or
/// values that are not finite.
PrecisionRecall precision_recall(const at::Tensor& generated, const at::Tensor& reference,
                                 std::int64_t k = 3, std::int64_t most = 10000);

}  // namespace laterna::monitoring
