// The kernel distance between two sets of features (KID where they are an image network's;
// Binkowski et al., "Demystifying MMD GANs", 2018): the squared maximum mean discrepancy with the
// kernel (x.y / d + 1)^3, its unbiased estimate, over random subsets. Unlike FID it has no excess
// at few samples, and it makes sense where n is below d. The bits depend neither on the number of
// threads nor on that of ranks.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>

namespace laterna::monitoring {

struct KernelDistance {
  double mean = 0, deviation = 0;  // over the subsets; the deviation divided by their number
};

/// Of `subsets` pairs of subsets without repetition, each of min(subset_size, n_a, n_b) samples
/// (defaults of torch-fidelity). A side with no more samples than that is taken whole each time, so
/// the deviation then tells of the other side alone. a [n_a,d], b [n_b,d]. Throws data::InputError
/// for other shapes, n < 2, or what is not finite.
KernelDistance kernel_distance(const at::Tensor& a, const at::Tensor& b, std::int64_t subsets = 100,
                               std::int64_t subset_size = 1000);

}  // namespace laterna::monitoring
