// Launchers of the bit-packing kernels; all pointers are to GPU memory. See
// dist/experts/bit_packing.h.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

namespace laterna::dist {

/// Packs rows `row_of` of spikes [blocks, elements] as bits into packed [rows, (elements + 7) / 8].
template <typename Real>
void pack_rows_on_gpu(const Real* spikes, const std::int64_t* row_of, std::uint8_t* packed,
                      std::int64_t rows, std::int64_t elements, cudaStream_t stream);
/// Unpacks packed [rows, (elements + 7) / 8] into spikes [rows, elements] as 0 and 1.
template <typename Real>
void unpack_rows_on_gpu(const std::uint8_t* packed, Real* spikes, std::int64_t rows,
                        std::int64_t elements, cudaStream_t stream);

}  // namespace laterna::dist
