// The CUDA implementations of the operators that model/spiking/spikes.cpp declares; LibTorch's
// dispatcher picks them by device.
#include <ATen/ATen.h>
#include <ATen/Dispatch.h>
#include <ATen/cuda/CUDAContext.h>
#include <c10/cuda/CUDAException.h>
#include <torch/library.h>

#include "model/kernels/cuda/bit_packing.h"

namespace laterna::kernels {
namespace {

void pack_rows(const at::Tensor& spikes, const at::Tensor& packed) {
  AT_DISPATCH_FLOATING_TYPES(spikes.scalar_type(), "pack_rows", [&] {
    pack_rows_on_gpu(spikes.const_data_ptr<scalar_t>(), packed.mutable_data_ptr<std::uint8_t>(),
                     spikes.size(0), spikes.size(1), at::cuda::getCurrentCUDAStream());
  });
  C10_CUDA_KERNEL_LAUNCH_CHECK();
}

void unpack_rows(const at::Tensor& packed, const at::Tensor& spikes) {
  AT_DISPATCH_FLOATING_TYPES(spikes.scalar_type(), "unpack_rows", [&] {
    unpack_rows_on_gpu(packed.const_data_ptr<std::uint8_t>(), spikes.mutable_data_ptr<scalar_t>(),
                       spikes.size(0), spikes.size(1), at::cuda::getCurrentCUDAStream());
  });
  C10_CUDA_KERNEL_LAUNCH_CHECK();
}

}  // namespace

TORCH_LIBRARY_IMPL(laterna, CUDA, m) {
  m.impl("pack_rows", pack_rows);
  m.impl("unpack_rows", unpack_rows);
}

}  // namespace laterna::kernels
