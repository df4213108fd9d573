// Dense matrix products in the library that is fastest on this processor: MKL, LibTorch's own
// choice, takes its kernels without AVX-512 on processors that Intel did not make; oneDNN, which
// LibTorch also holds, has them there.
#pragma once

#include <ATen/core/Tensor.h>

namespace laterna::model {

/// a b, [rows, columns] contiguous; a [rows, inner] contiguous, b [inner, columns] in any strides,
/// of one dtype and device. Without a gradient. Sums in float32 may differ in their last bits
/// between makes of processors.
at::Tensor dense_product(const at::Tensor& a, const at::Tensor& b);

}  // namespace laterna::model
