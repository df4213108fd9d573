// Dense matrix products by the library that is fastest on this processor. LibTorch's default, MKL,
// does not use its AVX-512 kernels on processors that are not Intel's; oneDNN, which LibTorch also
// contains, does.
#pragma once

#include <ATen/core/Tensor.h>

namespace laterna::model {

/// Returns a b, [rows, columns] contiguous, without recording a gradient. a: [rows, inner]
/// contiguous; b: [inner, columns] with any strides, of the same dtype and device. Sums in float32
/// may differ in their last bits between processor vendors.
at::Tensor dense_product(const at::Tensor& a, const at::Tensor& b);

}  // namespace laterna::model
