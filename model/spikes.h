// Spikes as the model passes them on. On a CPU they are bits, 32 times less than float32, which the
// kernels read as they are and the backward pass keeps; a proxy of the same rows without memory of
// its own carries the gradients. On other devices the proxy holds the spikes, 0 and 1.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <vector>

namespace laterna::model {

struct Spikes {
  at::Tensor proxy;         // [rows, groups * width], float32 or float64
  at::Tensor bits;          // int64 [rows, groups * words_of(width)]; undefined: the proxy's values
  std::int64_t groups = 1;  // parts of a row that begin at a word of their own

  /// From 0 and 1, [rows, groups * width]; the gradients go to `values`.
  static Spikes of(const at::Tensor& values, std::int64_t groups = 1);
  /// From bits, without a gradient.
  static Spikes of_bits(const at::Tensor& bits, std::int64_t width, at::ScalarType dtype,
                        std::int64_t groups = 1);

  std::int64_t rows() const { return proxy.size(0); }
  std::int64_t width() const { return proxy.size(1) / groups; }
  /// 0 and 1, [rows, groups * width]; their gradients go to the proxy.
  at::Tensor values() const;
  /// Rows first .. first + count - 1; shares the memory.
  Spikes slice(std::int64_t first, std::int64_t count) const;
  /// The same spikes as a leaf of another graph.
  Spikes leaf() const;

  /// For a message between ranks, spikes of one group as blocks of `tokens` rows: bytes of bits,
  /// uint8 [blocks, tokens * ceil(width / 8)], or the proxy's values [blocks, tokens * width].
  at::Tensor message(std::int64_t tokens) const;
  /// The same from such blocks, without a gradient.
  static Spikes of_message(const at::Tensor& blocks, std::int64_t width, at::ScalarType dtype);
};

/// The words of a tensor of bits, as the kernels take them.
std::uint64_t* words_in(const at::Tensor& bits);

/// How many fired of each row of bits, [rows].
std::vector<std::int64_t> fired_of_rows(const at::Tensor& bits);

/// A tensor of this shape without memory behind it, for a proxy.
at::Tensor empty_proxy(at::IntArrayRef shape, at::ScalarType dtype);

}  // namespace laterna::model
