// Launchers of the bit-packing kernels; all pointers are to GPU memory.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

namespace laterna::kernels {

/// Packs spikes [rows, elements], 0 and 1, as bits into packed [rows, (elements + 7) / 8]: element
/// i of a row is bit i % 8 of byte i / 8, and the last byte is padded with zeros.
template <typename Real>
void pack_rows_on_gpu(const Real* spikes, std::uint8_t* packed, std::int64_t rows,
                      std::int64_t elements, cudaStream_t stream);
/// Unpacks packed [rows, (elements + 7) / 8] into spikes [rows, elements] as 0 and 1.
template <typename Real>
void unpack_rows_on_gpu(const std::uint8_t* packed, Real* spikes, std::int64_t rows,
                        std::int64_t elements, cudaStream_t stream);

}  // namespace laterna::kernels
