// Kernel distance between two sets of features (KID where an image network computes the features;
// Binkowski et al., "Demystifying MMD GANs", 2018): the unbiased estimate of the squared maximum
// mean discrepancy with the kernel (x.y / d + 1)^3, averaged over random subsets. Unlike FID it is
// not biased at few samples, and it is meaningful where n is below d. The result has the same bits
// on any number of threads and ranks.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>

namespace laterna::monitoring {

struct KernelDistance {
  double mean = 0, deviation = 0;  // over the subsets; variance divided by their number
};

/// Returns the kernel distance of a [n_a,d] and b [n_b,d] over `subsets` pairs of random subsets,
/// each of min(subset_size, n_a, n_b) samples drawn without replacement (defaults of
/// torch-fidelity). A set with no more samples than that is used whole each time, so the deviation
/// then reflects only the other set. Throws data::InputError for other shapes, n < 2, or values
/// that are not finite.
KernelDistance kernel_distance(const at::Tensor& a, const at::Tensor& b, std::int64_t subsets = 100,
                               std::int64_t subset_size = 1000);

}  // namespace laterna::monitoring
