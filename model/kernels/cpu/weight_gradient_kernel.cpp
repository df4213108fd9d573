// The gradient of a weight whose inputs are spikes. For each input the gradients of the rows in
// which it fired are added, one stripe of columns and one block of rows at a time, so that the
// gradients to add are in the cache.
#include "model/kernels/cpu/bit_rows.h"
#include "model/kernels/cpu/kernels.h"
#include "model/kernels/cpu/spike_vectors.h"

namespace laterna::kernels {
namespace LATERNA_INSTRUCTION_SET {
namespace {

/// Copies `columns` columns of rows into `to` [rows, kStripe], padded with zeros.
template <typename Real>
void copy_stripe(const Real* from, std::int64_t stride, std::int64_t rows, std::int64_t columns,
                 Real* to) {
  for (std::int64_t r = 0; r < rows; ++r, from += stride, to += kStripe<Real>) {
    if (columns == kStripe<Real>) {
      for (std::int64_t c = 0; c < kStripe<Real>; ++c) to[c] = from[c];
    } else {
      for (std::int64_t c = 0; c < kStripe<Real>; ++c) to[c] = c < columns ? from[c] : Real(0);
    }
  }
}

/// A block of rows in one stripe of the weight gradient.
template <typename Real>
struct GradientBlock {
  std::int64_t first, rows;  // first row of the spikes, number of rows
  std::int64_t from, to;     // inputs from .. to - 1
  const Real* grad;          // [rows, kStripe]
  Real* sums;                // [to - from, kStripe]: added to
};

template <typename Real>
void add_listed(const GradientBlock<Real>& b, const std::int32_t* list_offsets,
                const std::uint16_t* indices) {
  constexpr std::int64_t lanes = kLanes<Real>, stripe = kStripe<Real>;
  constexpr int count = stripe / lanes < kVectorsAtOnce ? stripe / lanes : kVectorsAtOnce;
  for (std::int64_t i = b.from; i < b.to; ++i) {
    if (list_offsets[i] == list_offsets[i + 1]) continue;
    for (std::int64_t column = 0; column < stripe; column += count * lanes) {
      Real* mine = b.sums + (i - b.from) * stripe + column;
      typename Vector<Real>::Type sum[count];
      load<count>(static_cast<const Real*>(mine), sum);
      add_rows<count>(sum, b.grad + column, stripe, indices + list_offsets[i],
                      indices + list_offsets[i + 1]);
      store<count>(sum, mine);
    }
  }
}

/// Adds `rows` rows of unpacked spikes times gradients to `sums`, for `inputs` inputs and `count`
/// vectors of columns.
template <int inputs, int count, typename Real>
void multiply_inputs(const Real* spikes, const Real* grad, std::int64_t rows, Real* sums) {
  constexpr std::int64_t stripe = kStripe<Real>;
  typename Vector<Real>::Type sum[inputs][count];
#pragma GCC unroll 8
  for (int i = 0; i < inputs; ++i) {
    load<count>(static_cast<const Real*>(sums + i * stripe), sum[i]);
  }
  multiply_add<inputs, count, Real>(sum, spikes, 1, kUnpackedStride, grad, stripe, rows);
#pragma GCC unroll 8
  for (int i = 0; i < inputs; ++i) store<count>(sum[i], sums + i * stripe);
}

/// Multiplies densely for inputs from .. to - 1 and all columns of the stripe. `values` holds the
/// unpacked spikes from the start of the word of `from` on.
template <typename Real>
void multiply_values(const GradientBlock<Real>& b, std::int64_t from, std::int64_t to,
                     std::int64_t row, std::int64_t rows, const Real* values) {
  constexpr std::int64_t lanes = kLanes<Real>, stripe = kStripe<Real>;
  for (std::int64_t v = 0; v < stripe / lanes; v += kDenseVectors) {
    const Real* grad = b.grad + row * stripe + v * lanes;
    Real* sums = b.sums + (from - b.from) * stripe + v * lanes;
    const Real* spikes = values + from % 64;
    std::int64_t i = 0;
    for (; i + kDenseRows <= to - from; i += kDenseRows) {
      multiply_inputs<kDenseRows, kDenseVectors>(spikes + i, grad, rows, sums + i * stripe);
    }
    for (; i < to - from; ++i) {
      multiply_inputs<1, kDenseVectors>(spikes + i, grad, rows, sums + i * stripe);
    }
  }
}

/// Multiplies a block of rows densely, some inputs at a time, so that their sums and unpacked
/// spikes stay in the second-level cache.
template <typename Real>
void multiply_block(const WeightGradient<Real>& a, const GradientBlock<Real>& b, Real* values) {
  const std::int64_t words = words_of(a.width);
  for (std::int64_t from = b.from; from < b.to; from += kUnpackedInputs) {
    const std::int64_t to = b.to - from < kUnpackedInputs ? b.to : from + kUnpackedInputs;
    for (std::int64_t row = 0; row < b.rows; row += kUnpackedRows) {
      const std::int64_t rows = b.rows - row < kUnpackedRows ? b.rows - row : kUnpackedRows;
      for (std::int64_t r = 0; r < rows; ++r) {
        unpack_row(a.spikes + (b.first + row + r) * words + from / 64, to - from / 64 * 64,
                   values + r * kUnpackedStride);
      }
      multiply_values(b, from, to, row, rows, values);
    }
  }
}

}  // namespace

void transpose_lists(const TransposedLists& a, std::int64_t begin, std::int64_t end) {
  const std::int64_t words = words_of(a.width);
  for (std::int64_t block = begin; block < end; ++block) {
    const std::int64_t first = block * a.block_rows;
    const std::int64_t rows = a.rows - first < a.block_rows ? a.rows - first : a.block_rows;
    const std::uint64_t* bits = a.spikes + first * words;
    // Input i is counted at place i + 1, which then becomes the start of its list; filling the list
    // moves it to the start of the next list, where it belongs.
    std::int32_t* list_offsets = a.list_offsets + block * (a.width + 1);
    if (is_dense(a.dense_above, a.offsets[block + 1] - a.offsets[block], rows, a.width)) continue;
    for (std::int64_t i = 0; i <= a.width; ++i) list_offsets[i] = 0;
    for (std::int64_t row = 0; row < rows; ++row) {
      for_fired(bits + row * words, words, [&](std::int64_t i) { ++list_offsets[i + 1]; });
    }
    std::int32_t before = 0, count = 0;
    for (std::int64_t i = 1; i <= a.width; ++i) {
      before += count;
      count = list_offsets[i];
      list_offsets[i] = before;
    }
    std::uint16_t* indices = a.indices + a.offsets[block];
    for (std::int64_t row = 0; row < rows; ++row) {
      for_fired(bits + row * words, words, [&](std::int64_t i) {
        indices[list_offsets[i + 1]++] = static_cast<std::uint16_t>(row);
      });
    }
  }
}

template <typename Real>
void weight_gradient(const WeightGradient<Real>& a, std::int64_t begin, std::int64_t end) {
  constexpr std::int64_t stripe = kStripe<Real>;
  Real* rows = a.scratch;                   // [kBlockRows, kStripe]
  Real* sums = rows + kBlockRows * stripe;  // [inputs of the range, kStripe]
  Real* values = sums + a.width * stripe;   // [kUnpackedRows, kUnpackedStride]
  for (std::int64_t item = begin; item < end; ++item) {
    const std::int64_t column = item / a.ranges * stripe, range = item % a.ranges;
    const std::int64_t columns = a.columns - column < stripe ? a.columns - column : stripe;
    const std::int64_t first = a.width * range / a.ranges;
    const std::int64_t last = a.width * (range + 1) / a.ranges;
    for (std::int64_t i = 0; i < (last - first) * stripe; ++i) sums[i] = 0;
    for (std::int64_t row = 0, block = 0; row < a.rows; row += a.block_rows, ++block) {
      const std::int64_t here = a.rows - row < a.block_rows ? a.rows - row : a.block_rows;
      copy_stripe(a.grad + row * a.columns + column, a.columns, here, columns, rows);
      const GradientBlock<Real> of{row, here, first, last, rows, sums};
      const std::int32_t* list_offsets = a.list_offsets + block * (a.width + 1);
      if (is_dense(a.dense_above, a.offsets[block + 1] - a.offsets[block], here, a.width)) {
        multiply_block(a, of, values);
      } else {
        add_listed(of, list_offsets, a.indices + a.offsets[block]);
      }
    }
    // Tiles of kTile inputs, a cache line: sums are read, and the gradient is written, along cache
    // lines.
    for (std::int64_t i = first; i < last; i += kTile) {
      const std::int64_t inputs = last - i < kTile ? last - i : kTile;
      const Real* mine = sums + (i - first) * stripe;
      for (std::int64_t c = 0; c < columns; ++c) {
        Real* out = a.out + (column + c) * a.width + i;
        for (std::int64_t n = 0; n < inputs; ++n) out[n] = mine[n * stripe + c];
      }
    }
  }
}

template void weight_gradient(const WeightGradient<float>&, std::int64_t, std::int64_t);
template void weight_gradient(const WeightGradient<double>&, std::int64_t, std::int64_t);

}  // namespace LATERNA_INSTRUCTION_SET
}  // namespace laterna::kernels
