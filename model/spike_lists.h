// Which inputs fired, row by row, and the sums of matrix rows that such lists name: the
// spike-driven half of spike_linear, where silence costs nothing.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>

namespace laterna::model {

struct SpikeLists {
  at::Tensor starts;  // int32 [rows + 1], places in `indices`
  at::Tensor
      indices;  // int32 [places]; undefined: too many fire for lists to pay, and none was made
  std::int64_t width;  // inputs a row

  bool sparse() const { return indices.defined(); }
  /// The lists of some of the rows; shares the memory.
  SpikeLists rows(std::int64_t first, std::int64_t count) const;
  /// For each input, the rows in which it fired, counted from the first row of these lists.
  SpikeLists turned() const;
};

/// Lists of spikes [rows, width] (0 and 1, float32 or float64, on the CPU). Where more than a fifth
/// of the inputs fire, and on other devices, there are no lists: a dense product is as fast then.
SpikeLists list_spikes(const at::Tensor& spikes);

/// out[i] = start + sum over list i of the rows of matrix [width of the lists, columns] (any
/// strides), in list order; start [columns] or undefined; out [lists, columns] contiguous.
void sum_listed(const SpikeLists& lists, const at::Tensor& matrix, const at::Tensor& start,
                at::Tensor& out);

}  // namespace laterna::model
