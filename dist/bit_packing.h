// Spikes as bits: one bit an element, 32 times less than float32, without loss. Both functions are
// operators of LibTorch's dispatcher, laterna::pack_rows and laterna::unpack_rows, which takes the
// version of the tensors' device.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>

namespace laterna::dist {

/// Bytes of a packed row of `elements` spikes: eight a byte, the last byte filled with zeros.
inline std::int64_t packed_bytes(std::int64_t elements) { return (elements + 7) / 8; }

/// Rows `rows` (int64 [S]) of spikes [blocks, elements] (0 and 1, float32 or float64; throws
/// c10::Error unless contiguous) as bits in `packed`, all on one device: uint8 [S,
/// packed_bytes(elements)]. Element i of a row is bit i % 8 of byte i / 8.
void pack_rows(const at::Tensor& spikes, const at::Tensor& rows, const at::Tensor& packed);
/// The reverse: `spikes` [rows, elements] becomes 0 and 1.
void unpack_rows(const at::Tensor& packed, const at::Tensor& spikes);

}  // namespace laterna::dist
