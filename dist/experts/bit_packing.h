// Spikes as bits: one bit per element, 32 times less than float32, without loss. Both functions are
// operators of LibTorch's dispatcher, laterna::pack_rows and laterna::unpack_rows, which picks the
// implementation by the tensors' device.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>

namespace laterna::dist {

/// Returns the number of bytes in a packed row of `elements` spikes: eight spikes per byte, the
/// last byte padded with zero bits.
inline std::int64_t packed_bytes(std::int64_t elements) { return (elements + 7) / 8; }

/// Packs rows `rows` (int64 [S]) of `spikes` [blocks, elements] (0 and 1, float32 or float64;
/// throws c10::Error unless contiguous) as bits into `packed`, uint8 [S, packed_bytes(elements)],
/// all on one device. Element i of a row is bit i % 8 of byte i / 8.
void pack_rows(const at::Tensor& spikes, const at::Tensor& rows, const at::Tensor& packed);
/// Unpacks the bits of `packed`, uint8 [rows, packed_bytes(elements)], into `spikes` [rows,
/// elements] as 0 and 1.
void unpack_rows(const at::Tensor& packed, const at::Tensor& spikes);

}  // namespace laterna::dist
