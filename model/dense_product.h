// Dense matrix products in the library that is fastest on this processor: MKL, LibTorch's own
// choice, takes its kernels without AVX-512 on processors that Intel did not make; oneDNN, which
// LibTorch also holds, has them there.
#pragma once

#include <ATen/core/Tensor.h>

namespace laterna::model {

/// out = a b; a [rows, inner] contiguous, b [inner, columns] in any strides, out [rows, columns]
/// contiguous, all of one dtype and device. Sums in float32 may differ in their last bits between
/// makes of processors.
void dense_product(const at::Tensor& a, const at::Tensor& b, at::Tensor& out);

}  // namespace laterna::model
