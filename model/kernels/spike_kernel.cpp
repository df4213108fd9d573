// Products with spikes by adding rows: silence costs nothing. The active inputs of a row of bits
// are listed; their weight rows are added in registers, a panel of columns at a time. The weight
// gradient is the same sum with the roles turned: for each input, the gradients of the rows in
// which it fired.
#include "model/kernels/bit_rows.h"
#include "model/kernels/kernels.h"

namespace laterna::kernels {
namespace LATERNA_INSTRUCTION_SET {
namespace {

// The compiler's vectors: 64 bytes, split into what the instruction set has.
template <typename Real>
struct Vector;
template <>
struct Vector<float> {
  typedef float Type __attribute__((vector_size(64), aligned(4), may_alias));
};
template <>
struct Vector<double> {
  typedef double Type __attribute__((vector_size(64), aligned(8), may_alias));
};

#ifdef __AVX512F__
constexpr int kVectorsAtOnce = 8;  // accumulators, of 32 registers
constexpr int kDenseRowsAtOnce = 6, kDenseVectors = 4;
constexpr int kGradientInputs = 6, kGradientVectors = 4;
#else
constexpr int kVectorsAtOnce = 4;  // as two halves each, of 16 registers
constexpr int kDenseRowsAtOnce = 6, kDenseVectors = 1;
constexpr int kGradientInputs = 6, kGradientVectors = 1;
#endif
static_assert(kDenseRowsAtOnce <= kDenseRows);

bool is_dense(double share, std::int64_t fired, std::int64_t rows, std::int64_t width) {
  return static_cast<double>(fired) > share * static_cast<double>(rows * width);
}

/// Adds to `sum` the vectors of the rows that a list names; `rows` points into the first row.
template <int count, typename Real, typename Index>
void add_rows(typename Vector<Real>::Type (&sum)[count], const Real* rows, std::int64_t stride,
              const Index* index, const Index* last) {
  using V = typename Vector<Real>::Type;
  constexpr std::int64_t lanes = 64 / sizeof(Real);
  for (; index < last; ++index) {
    const Real* row = rows + std::int64_t(*index) * stride;
#pragma GCC unroll 8
    for (int v = 0; v < count; ++v) sum[v] += *reinterpret_cast<const V*>(row + v * lanes);
  }
}

/// Rows of spikes, and of their inputs as many as the second-level cache holds rows of a panel;
/// row r's list, counted from the first of these inputs, is starts[r] .. starts[r + 1].
struct Tile {
  std::int64_t first, rows;
  std::int64_t from, inputs;
  const std::int32_t *starts, *indices;
};

/// `count` vectors of columns of one row of the output, of which some columns exist: what has been
/// summed over the inputs before the tile's.
template <int count, typename Real>
void load_sums(const SpikeSum<Real>& a, const Tile& tile, std::int64_t row, std::int64_t column,
               typename Vector<Real>::Type (&sum)[count]) {
  using V = typename Vector<Real>::Type;
  constexpr std::int64_t lanes = 64 / sizeof(Real), width = count * lanes;
  const std::int64_t valid = a.columns - column;
  const Real* from = tile.from == 0 ? a.start : a.out + row * a.columns;
  if (from && valid >= width) {
#pragma GCC unroll 8
    for (int v = 0; v < count; ++v) {
      sum[v] = *reinterpret_cast<const V*>(from + column + v * lanes);
    }
    return;
  }
  Real spill[width];
  for (std::int64_t c = 0; c < width; ++c)
    spill[c] = from && c < valid ? from[column + c] : Real(0);
#pragma GCC unroll 8
  for (int v = 0; v < count; ++v) sum[v] = *reinterpret_cast<const V*>(spill + v * lanes);
}

template <int count, typename Real>
void store_sums(const SpikeSum<Real>& a, std::int64_t row, std::int64_t column,
                const typename Vector<Real>::Type (&sum)[count]) {
  using V = typename Vector<Real>::Type;
  constexpr std::int64_t lanes = 64 / sizeof(Real), width = count * lanes;
  const std::int64_t valid = a.columns - column;
  Real* out = a.out + row * a.columns + column;
  if (valid >= width) {
#pragma GCC unroll 8
    for (int v = 0; v < count; ++v) *reinterpret_cast<V*>(out + v * lanes) = sum[v];
    return;
  }
  Real spill[width];
#pragma GCC unroll 8
  for (int v = 0; v < count; ++v) *reinterpret_cast<V*>(spill + v * lanes) = sum[v];
  for (std::int64_t c = 0; c < valid; ++c) out[c] = spill[c];
}

/// The tile's first row of the panel that holds a column, at that column.
template <typename Real>
const Real* panel_at(const SpikeSum<Real>& a, const Tile& tile, std::int64_t column) {
  const Real* panel = a.panels + column / kPanel<Real> * a.matrix_rows * kPanel<Real>;
  return panel + tile.from * kPanel<Real> + column % kPanel<Real>;
}

/// `count` vectors of columns from `column` on, for the rows of a tile.
template <int count, typename Real>
void sum_columns(const SpikeSum<Real>& a, std::int64_t column, const Tile& tile) {
  const Real* rows = panel_at(a, tile, column);
  for (std::int64_t r = 0; r < tile.rows; ++r) {
    typename Vector<Real>::Type sum[count];
    load_sums<count>(a, tile, tile.first + r, column, sum);
    add_rows<count>(sum, rows, kPanel<Real>, tile.indices + tile.starts[r],
                    tile.indices + tile.starts[r + 1]);
    store_sums<count>(a, tile.first + r, column, sum);
  }
}

template <typename Real>
void sum_tile(const SpikeSum<Real>& a, const Tile& tile) {
  constexpr std::int64_t lanes = 64 / sizeof(Real), widest = kVectorsAtOnce * lanes;
  std::int64_t column = 0;
  while (column < a.columns) {
    const std::int64_t left = a.columns - column;
    if (left > widest / 2) {
      sum_columns<kVectorsAtOnce>(a, column, tile);
      column += widest;
    } else if (left > widest / 4) {
      sum_columns<kVectorsAtOnce / 2>(a, column, tile);
      column += widest / 2;
    } else {
      sum_columns<kVectorsAtOnce / 4>(a, column, tile);
      column += widest / 4;
    }
  }
}

/// `count` vectors of columns, for some rows from `first` on, by multiply-adds with 0 and 1.
template <int row_count, int count, typename Real>
void multiply_columns(const SpikeSum<Real>& a, std::int64_t column, const Tile& tile,
                      std::int64_t first) {
  using V = typename Vector<Real>::Type;
  constexpr std::int64_t lanes = 64 / sizeof(Real);
  V sum[row_count][count];
#pragma GCC unroll 8
  for (int r = 0; r < row_count; ++r) load_sums<count>(a, tile, first + r, column, sum[r]);
  const Real* matrix = panel_at(a, tile, column);
  for (std::int64_t i = 0; i < tile.inputs; ++i, matrix += kPanel<Real>) {
    V row[count];
#pragma GCC unroll 8
    for (int v = 0; v < count; ++v) row[v] = *reinterpret_cast<const V*>(matrix + v * lanes);
#pragma GCC unroll 8
    for (int r = 0; r < row_count; ++r) {
      const Real spike = a.values[r * kTileInputs + i];
#pragma GCC unroll 8
      for (int v = 0; v < count; ++v) sum[r][v] += spike * row[v];
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < row_count; ++r) store_sums<count>(a, first + r, column, sum[r]);
}

template <typename Real>
void multiply_tile(const SpikeSum<Real>& a, const Tile& tile) {
  constexpr std::int64_t width = kDenseVectors * (64 / sizeof(Real));
  const std::int64_t words = words_of(a.matrix_rows), end = tile.first + tile.rows;
  for (std::int64_t first = tile.first; first < end;) {
    const std::int64_t taken = end - first >= kDenseRowsAtOnce ? kDenseRowsAtOnce : 1;
    for (std::int64_t r = 0; r < taken; ++r) {
      unpack_row(a.spikes + (first + r) * words + tile.from / 64, tile.inputs,
                 a.values + r * kTileInputs);
    }
    for (std::int64_t column = 0; column < a.columns; column += width) {
      if (taken == kDenseRowsAtOnce) {
        multiply_columns<kDenseRowsAtOnce, kDenseVectors>(a, column, tile, first);
      } else {
        multiply_columns<1, kDenseVectors>(a, column, tile, first);
      }
    }
    first += taken;
  }
}

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

constexpr std::int64_t kTile = 16;

/// A block of rows of one stripe of the weight gradient.
template <typename Real>
struct GradientBlock {
  std::int64_t first, rows;  // rows of the spikes
  std::int64_t from, to;     // inputs
  const Real* grad;          // [rows, kStripe]
  Real* sums;                // [to - from, kStripe]: added to
};

template <typename Real>
void add_listed(const WeightGradient<Real>& a, const GradientBlock<Real>& b,
                const std::int32_t* starts, const std::uint16_t* indices) {
  using V = typename Vector<Real>::Type;
  constexpr std::int64_t lanes = 64 / sizeof(Real);
  constexpr int count = kStripe<Real> / lanes;
  for (std::int64_t i = b.from; i < b.to; ++i) {
    if (starts[i] == starts[i + 1]) continue;
    Real* mine = b.sums + (i - b.from) * kStripe<Real>;
    V sum[count];
#pragma GCC unroll 8
    for (int v = 0; v < count; ++v) sum[v] = *reinterpret_cast<const V*>(mine + v * lanes);
    add_rows<count>(sum, b.grad, kStripe<Real>, indices + starts[i], indices + starts[i + 1]);
#pragma GCC unroll 8
    for (int v = 0; v < count; ++v) *reinterpret_cast<V*>(mine + v * lanes) = sum[v];
  }
}

/// `rows` rows of spikes, unpacked, for some inputs and vectors of columns.
template <int inputs, int count, typename Real>
void multiply_inputs(const Real* spikes, std::int64_t width, const Real* grad, std::int64_t rows,
                     Real* sums) {
  using V = typename Vector<Real>::Type;
  constexpr std::int64_t lanes = 64 / sizeof(Real), stripe = kStripe<Real>;
  V sum[inputs][count];
#pragma GCC unroll 8
  for (int i = 0; i < inputs; ++i) {
#pragma GCC unroll 8
    for (int v = 0; v < count; ++v) {
      sum[i][v] = *reinterpret_cast<const V*>(sums + i * stripe + v * lanes);
    }
  }
  for (std::int64_t row = 0; row < rows; ++row, grad += stripe, spikes += width) {
    V g[count];
#pragma GCC unroll 8
    for (int v = 0; v < count; ++v) g[v] = *reinterpret_cast<const V*>(grad + v * lanes);
#pragma GCC unroll 8
    for (int i = 0; i < inputs; ++i) {
#pragma GCC unroll 8
      for (int v = 0; v < count; ++v) sum[i][v] += spikes[i] * g[v];
    }
  }
#pragma GCC unroll 8
  for (int i = 0; i < inputs; ++i) {
#pragma GCC unroll 8
    for (int v = 0; v < count; ++v) {
      *reinterpret_cast<V*>(sums + i * stripe + v * lanes) = sum[i][v];
    }
  }
}

template <typename Real>
void multiply_block(const WeightGradient<Real>& a, const GradientBlock<Real>& b, Real* values) {
  constexpr std::int64_t lanes = 64 / sizeof(Real), stripe = kStripe<Real>;
  const std::int64_t words = words_of(a.width);
  for (std::int64_t row = 0; row < b.rows; row += kUnpackedRows) {
    const std::int64_t rows = b.rows - row < kUnpackedRows ? b.rows - row : kUnpackedRows;
    for (std::int64_t r = 0; r < rows; ++r) {
      unpack_row(a.spikes + (b.first + row + r) * words, a.width, values + r * a.width);
    }
    for (std::int64_t v = 0; v < stripe / lanes; v += kGradientVectors) {
      const Real* grad = b.grad + row * stripe + v * lanes;
      std::int64_t i = b.from;
      for (; i + kGradientInputs <= b.to; i += kGradientInputs) {
        multiply_inputs<kGradientInputs, kGradientVectors>(
            values + i, a.width, grad, rows, b.sums + (i - b.from) * stripe + v * lanes);
      }
      for (; i < b.to; ++i) {
        multiply_inputs<1, kGradientVectors>(values + i, a.width, grad, rows,
                                             b.sums + (i - b.from) * stripe + v * lanes);
      }
    }
  }
}

}  // namespace

template <typename Real>
void pack_rows(const Real* spikes, std::int64_t width, std::uint64_t* bits, std::int64_t begin,
               std::int64_t end) {
  for (std::int64_t row = begin; row < end; ++row) {
    pack_row(spikes + row * width, width, bits + row * words_of(width));
  }
}

template <typename Real>
void unpack_rows(const std::uint64_t* bits, std::int64_t width, Real* spikes, std::int64_t begin,
                 std::int64_t end) {
  for (std::int64_t row = begin; row < end; ++row) {
    unpack_row(bits + row * words_of(width), width, spikes + row * width);
  }
}

template <typename Real>
void spike_sum(const SpikeSum<Real>& a, std::int64_t begin, std::int64_t end) {
  const std::int64_t words = words_of(a.matrix_rows);
  std::int32_t* starts = a.lists;
  std::int32_t* indices = starts + kTileRows + 1;
  for (std::int64_t from = 0; from < a.matrix_rows; from += kTileInputs) {
    const std::int64_t left = a.matrix_rows - from;
    const std::int64_t inputs = left < kTileInputs ? left : kTileInputs;
    for (std::int64_t row = begin; row < end;) {
      Tile tile{row, 0, from, inputs, starts, indices};
      std::int32_t* place = indices;
      starts[0] = 0;
      for (; row < end && tile.rows < kTileRows && place - indices < kTilePlaces; ++row) {
        place = list_row(a.spikes + row * words + from / 64, words_of(inputs), place);
        starts[++tile.rows] = static_cast<std::int32_t>(place - indices);
      }
      if (is_dense(a.dense, place - indices, tile.rows, inputs)) {
        multiply_tile(a, tile);
      } else {
        sum_tile(a, tile);
      }
    }
  }
}

void turn_lists(const TurnedLists& a, std::int64_t begin, std::int64_t end) {
  const std::int64_t words = words_of(a.width);
  for (std::int64_t block = begin; block < end; ++block) {
    const std::int64_t first = block * a.block_rows;
    const std::int64_t rows = a.rows - first < a.block_rows ? a.rows - first : a.block_rows;
    const std::uint64_t* bits = a.spikes + first * words;
    // Counted one place further on, so that filling a list moves its start to where it belongs.
    std::int32_t* starts = a.starts + block * (a.width + 1);
    std::int64_t fired = 0;
    for (std::int64_t w = 0; w < rows * words; ++w) fired += __builtin_popcountll(bits[w]);
    if (is_dense(a.dense, fired, rows, a.width)) {
      starts[a.width] = static_cast<std::int32_t>(fired);
      continue;
    }
    for (std::int64_t i = 0; i <= a.width; ++i) starts[i] = 0;
    for (std::int64_t row = 0; row < rows; ++row) {
      for_fired(bits + row * words, words, [&](std::int64_t i) { ++starts[i + 1]; });
    }
    std::int32_t before = 0, count = 0;
    for (std::int64_t i = 1; i <= a.width; ++i) {
      before += count;
      count = starts[i];
      starts[i] = before;
    }
    std::uint16_t* indices = a.indices + a.places[block];
    for (std::int64_t row = 0; row < rows; ++row) {
      for_fired(bits + row * words, words, [&](std::int64_t i) {
        indices[starts[i + 1]++] = static_cast<std::uint16_t>(row);
      });
    }
  }
}

template <typename Real>
void weight_gradient(const WeightGradient<Real>& a, std::int64_t begin, std::int64_t end) {
  constexpr std::int64_t stripe = kStripe<Real>;
  Real* rows = a.scratch;                   // [kBlockRows, kStripe]
  Real* sums = rows + kBlockRows * stripe;  // [inputs of the range, kStripe]
  Real* values = sums + a.width * stripe;   // [kUnpackedRows, width]
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
      const std::int32_t* starts = a.starts + block * (a.width + 1);
      if (is_dense(a.dense, starts[a.width], here, a.width)) {
        multiply_block(a, of, values);
      } else {
        add_listed(a, of, starts, a.indices + a.places[block]);
      }
    }
    // Tiles of a cache line's inputs: the sums are read, and the gradient written, along lines.
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

template <typename Real>
void pack(const Pack<Real>& a, std::int64_t begin, std::int64_t end) {
  const std::int64_t panels = (a.columns + kPanel<Real> - 1) / kPanel<Real>;
  for (std::int64_t panel = 0; panel < panels; ++panel) {
    const std::int64_t first = panel * kPanel<Real>;
    const std::int64_t valid = a.columns - first < kPanel<Real> ? a.columns - first : kPanel<Real>;
    if (a.column_stride == 1) {
      for (std::int64_t row = begin; row < end; ++row) {
        const Real* from = a.matrix + row * a.row_stride + first;
        Real* to = a.panels + (panel * a.rows + row) * kPanel<Real>;
        for (std::int64_t c = 0; c < valid; ++c) to[c] = from[c];
        for (std::int64_t c = valid; c < kPanel<Real>; ++c) to[c] = 0;
      }
      continue;
    }
    // Tiles of a cache line's rows: a transposed matrix is read along its lines all the same.
    for (std::int64_t row = begin; row < end; row += kTile) {
      const std::int64_t rows = end - row < kTile ? end - row : kTile;
      const Real* from = a.matrix + row * a.row_stride + first * a.column_stride;
      Real* to = a.panels + (panel * a.rows + row) * kPanel<Real>;
      for (std::int64_t c = 0; c < valid; ++c) {
        for (std::int64_t r = 0; r < rows; ++r) {
          to[r * kPanel<Real> + c] = from[r * a.row_stride + c * a.column_stride];
        }
      }
      for (std::int64_t r = 0; r < rows; ++r) {
        for (std::int64_t c = valid; c < kPanel<Real>; ++c) to[r * kPanel<Real> + c] = 0;
      }
    }
  }
}

template void pack_rows(const float*, std::int64_t, std::uint64_t*, std::int64_t, std::int64_t);
template void pack_rows(const double*, std::int64_t, std::uint64_t*, std::int64_t, std::int64_t);
template void unpack_rows(const std::uint64_t*, std::int64_t, float*, std::int64_t, std::int64_t);
template void unpack_rows(const std::uint64_t*, std::int64_t, double*, std::int64_t, std::int64_t);
template void weight_gradient(const WeightGradient<float>&, std::int64_t, std::int64_t);
template void weight_gradient(const WeightGradient<double>&, std::int64_t, std::int64_t);
template void spike_sum(const SpikeSum<float>&, std::int64_t, std::int64_t);
template void spike_sum(const SpikeSum<double>&, std::int64_t, std::int64_t);
template void pack(const Pack<float>&, std::int64_t, std::int64_t);
template void pack(const Pack<double>&, std::int64_t, std::int64_t);

}  // namespace LATERNA_INSTRUCTION_SET
}  // namespace laterna::kernels
