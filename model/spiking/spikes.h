// Spikes as they pass between layers. On devices with kernels (has_kernels) they are packed bits,
// 32 times smaller than float32, which the kernels read directly and the backward pass keeps. A
// gradient proxy, a tensor with the same rows and no memory for its elements, stands for the spikes
// in the autograd graph and carries their gradients. On other devices the gradient proxy holds the
// spikes itself, as 0 and 1.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <vector>

namespace laterna::model {

struct Spikes {
  at::Tensor proxy;         // [rows, groups * width], float32 or float64
  at::Tensor bits;          // int64 [rows, groups * words_of(width)]; undefined: the proxy's values
  std::int64_t groups = 1;  // parts of a row, each of which starts a new word

  /// Packs values 0 and 1, [rows, groups * width]; gradients flow to `values`.
  static Spikes of(const at::Tensor& values, std::int64_t groups = 1);
  /// Wraps packed bits, without a gradient.
  static Spikes of_bits(const at::Tensor& bits, std::int64_t width, at::ScalarType dtype,
                        std::int64_t groups = 1);

  /// Returns whether the spikes are packed bits, for the kernels to read.
  bool packed() const { return bits.defined(); }
  std::int64_t rows() const { return proxy.size(0); }
  std::int64_t width() const { return proxy.size(1) / groups; }
  /// Returns 0 and 1, [rows, groups * width]; gradients flow to the proxy.
  at::Tensor values() const;
  /// Returns rows first .. first + count - 1, which share the memory.
  Spikes slice(std::int64_t first, std::int64_t count) const;
  /// Returns the same spikes as a leaf of another autograd graph.
  Spikes leaf() const;

  /// Returns spikes of one group as a message to another rank, in token blocks of `tokens` rows:
  /// uint8 [blocks, tokens * message_bytes(width)] on any device.
  at::Tensor message(std::int64_t tokens) const;
  /// Returns the spikes in a message() of these token blocks, without a gradient.
  static Spikes of_message(const at::Tensor& blocks, std::int64_t width, at::ScalarType dtype);
};

/// Returns whether the project's kernels compute on this device. On any other device each operation
/// is computed by its reference, in tensor operations.
inline bool has_kernels(at::Device device) { return device.is_cpu(); }

/// Returns the bytes of a row of `width` spikes in a message: element i is bit i % 8 of byte i / 8,
/// and the last byte is padded with zeros.
inline std::int64_t message_bytes(std::int64_t width) { return (width + 7) / 8; }

/// Returns the words of a tensor of bits, as the kernels take them.
std::uint64_t* words_in(const at::Tensor& bits);

/// Returns the number of spikes in each row of bits, [rows].
std::vector<std::int64_t> fired_of_rows(const at::Tensor& bits);

/// Returns a gradient proxy of this shape, without memory for its elements.
at::Tensor empty_proxy(at::IntArrayRef shape, at::ScalarType dtype);

}  // namespace laterna::model
