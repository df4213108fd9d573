// Packs spikes as bits and unpacks them: one thread per byte, so that neighbouring threads access
// neighbouring addresses.
#include "model/kernels/cuda/bit_packing.h"

namespace laterna::kernels {
namespace {

constexpr int kThreads = 256;

template <typename Real>
__global__ void pack(const Real* spikes, std::uint8_t* packed, std::int64_t rows,
                     std::int64_t elements) {
  const std::int64_t bytes = (elements + 7) / 8;
  const std::int64_t i = std::int64_t(blockIdx.x) * kThreads + threadIdx.x;
  if (i >= rows * bytes) return;
  const std::int64_t first = i % bytes * 8;
  const Real* from = spikes + i / bytes * elements + first;
  unsigned byte = 0;
  for (int bit = 0; bit < 8; ++bit) {
    if (first + bit < elements) byte |= unsigned(from[bit] != Real(0)) << bit;
  }
  packed[i] = static_cast<std::uint8_t>(byte);
}

template <typename Real>
__global__ void unpack(const std::uint8_t* packed, Real* spikes, std::int64_t rows,
                       std::int64_t elements) {
  const std::int64_t bytes = (elements + 7) / 8;
  const std::int64_t i = std::int64_t(blockIdx.x) * kThreads + threadIdx.x;
  if (i >= rows * bytes) return;
  const std::int64_t first = i % bytes * 8;
  Real* to = spikes + i / bytes * elements + first;
  for (int bit = 0; bit < 8; ++bit) {
    if (first + bit < elements) to[bit] = Real((packed[i] >> bit) & 1);
  }
}

unsigned blocks_for(std::int64_t rows, std::int64_t elements) {
  return static_cast<unsigned>((rows * ((elements + 7) / 8) + kThreads - 1) / kThreads);
}

}  // namespace

template <typename Real>
void pack_rows_on_gpu(const Real* spikes, std::uint8_t* packed, std::int64_t rows,
                      std::int64_t elements, cudaStream_t stream) {
  if (rows * elements == 0) return;
  pack<<<blocks_for(rows, elements), kThreads, 0, stream>>>(spikes, packed, rows, elements);
}

template <typename Real>
void unpack_rows_on_gpu(const std::uint8_t* packed, Real* spikes, std::int64_t rows,
                        std::int64_t elements, cudaStream_t stream) {
  if (rows * elements == 0) return;
  unpack<<<blocks_for(rows, elements), kThreads, 0, stream>>>(packed, spikes, rows, elements);
}

template void pack_rows_on_gpu(const float*, std::uint8_t*, std::int64_t, std::int64_t,
                               cudaStream_t);
template void pack_rows_on_gpu(const double*, std::uint8_t*, std::int64_t, std::int64_t,
                               cudaStream_t);
template void unpack_rows_on_gpu(const std::uint8_t*, float*, std::int64_t, std::int64_t,
                                 cudaStream_t);
template void unpack_rows_on_gpu(const std::uint8_t*, double*, std::int64_t, std::int64_t,
                                 cudaStream_t);

}  // namespace laterna::kernels
