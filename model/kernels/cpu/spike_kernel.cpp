// Products of spikes with a matrix, by adding rows: silent inputs cost nothing. The active inputs
// of each row of bits are listed, and their weight rows are added in registers, one panel of
// columns at a time. Where many inputs fire, rows are multiplied densely, in the same order of
// addition.
#include "model/kernels/cpu/bit_rows.h"
#include "model/kernels/cpu/kernels.h"
#include "model/kernels/cpu/spike_vectors.h"

namespace laterna::kernels {
namespace LATERNA_INSTRUCTION_SET {
namespace {

/// Rows first .. first + rows - 1 of the spikes, and inputs from .. from + inputs - 1, no more than
/// the second-level cache holds rows of a panel. The list of row r, relative to `from`, is
/// indices[list_offsets[r]] .. indices[list_offsets[r + 1] - 1].
struct Tile {
  std::int64_t first, rows;
  std::int64_t from, inputs;
  const std::int32_t *list_offsets, *indices;
};

/// Loads the sums over the inputs before the tile, for `count` vectors of columns of one row of the
/// output; columns that do not exist are 0.
template <int count, typename Real>
void load_sums(const SpikeSum<Real>& a, const Tile& tile, std::int64_t row, std::int64_t column,
               typename Vector<Real>::Type (&sum)[count]) {
  constexpr std::int64_t width = count * kLanes<Real>;
  const std::int64_t valid = a.columns - column;
  const Real* from = tile.from == 0 ? a.start : a.out + row * a.columns;
  if (valid >= width) return load<count>(from + column, sum);
  Real spill[width];
  for (std::int64_t c = 0; c < width; ++c) {
    spill[c] = c < valid ? from[column + c] : Real(0);
  }
  load<count>(static_cast<const Real*>(spill), sum);
}

template <int count, typename Real>
void store_sums(const SpikeSum<Real>& a, std::int64_t row, std::int64_t column,
                const typename Vector<Real>::Type (&sum)[count]) {
  store_within<count>(sum, a.out + row * a.columns + column, a.columns - column);
}

/// Returns the tile's first row of the panel that holds `column`, at that column.
template <typename Real>
const Real* panel_at(const SpikeSum<Real>& a, const Tile& tile, std::int64_t column) {
  const Real* panel = a.panels + column / kPanel<Real> * a.matrix_rows * kPanel<Real>;
  return panel + tile.from * kPanel<Real> + column % kPanel<Real>;
}

/// Adds the listed rows to `count` vectors of columns from `column` on, for all rows of a tile.
template <int count, typename Real>
void sum_columns(const SpikeSum<Real>& a, std::int64_t column, const Tile& tile) {
  const Real* rows = panel_at(a, tile, column);
  for (std::int64_t r = 0; r < tile.rows; ++r) {
    typename Vector<Real>::Type sum[count];
    load_sums<count>(a, tile, tile.first + r, column, sum);
    add_rows<count>(sum, rows, kPanel<Real>, tile.indices + tile.list_offsets[r],
                    tile.indices + tile.list_offsets[r + 1]);
    store_sums<count>(a, tile.first + r, column, sum);
  }
}

template <typename Real>
void sum_tile(const SpikeSum<Real>& a, const Tile& tile) {
  constexpr std::int64_t widest = kVectorsAtOnce * kLanes<Real>;
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

/// Multiplies `count` vectors of columns by multiply-adds with 0 and 1, for `row_count` of the rows
/// that are unpacked from `first` on, namely from first + r0 on.
template <int row_count, int count, typename Real>
void multiply_columns(const SpikeSum<Real>& a, std::int64_t column, const Tile& tile,
                      std::int64_t first, std::int64_t r0) {
  typename Vector<Real>::Type sum[row_count][count];
#pragma GCC unroll 8
  for (int r = 0; r < row_count; ++r) load_sums<count>(a, tile, first + r0 + r, column, sum[r]);
  multiply_add<row_count, count, Real>(sum, a.values + r0 * kTileInputs, kTileInputs, 1,
                                       panel_at(a, tile, column), kPanel<Real>, tile.inputs);
#pragma GCC unroll 8
  for (int r = 0; r < row_count; ++r) store_sums<count>(a, first + r0 + r, column, sum[r]);
}

/// Multiplies a tile densely: unpacks a batch of rows, then takes a few columns of the matrix at a
/// time, which stay in the second-level cache for the whole batch.
template <typename Real>
void multiply_tile(const SpikeSum<Real>& a, const Tile& tile) {
  constexpr std::int64_t width = kDenseVectors * kLanes<Real>;
  const std::int64_t words = words_of(a.matrix_rows), end = tile.first + tile.rows;
  for (std::int64_t first = tile.first; first < end; first += kDenseBatch) {
    const std::int64_t rows = end - first < kDenseBatch ? end - first : kDenseBatch;
    for (std::int64_t r = 0; r < rows; ++r) {
      unpack_row(a.spikes + (first + r) * words + tile.from / 64, tile.inputs,
                 a.values + r * kTileInputs);
    }
    for (std::int64_t column = 0; column < a.columns; column += width) {
      std::int64_t r = 0;
      for (; r + kDenseRows <= rows; r += kDenseRows) {
        multiply_columns<kDenseRows, kDenseVectors>(a, column, tile, first, r);
      }
      for (; r < rows; ++r) multiply_columns<1, kDenseVectors>(a, column, tile, first, r);
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
  std::int32_t* list_offsets = a.lists;
  std::int32_t* indices = list_offsets + kTileRows + 1;
  for (std::int64_t from = 0; from < a.matrix_rows; from += kTileInputs) {
    const std::int64_t left = a.matrix_rows - from;
    const std::int64_t inputs = left < kTileInputs ? left : kTileInputs;
    for (std::int64_t row = begin; row < end;) {
      Tile tile{row, 0, from, inputs, list_offsets, indices};
      std::int64_t fired = 0;
      for (; row < end && tile.rows < kTileRows && fired < kTilePlaces; ++row, ++tile.rows) {
        fired += count_row(a.spikes + row * words + from / 64, words_of(inputs));
      }
      if (is_dense(a.dense_above, fired, tile.rows, inputs)) {
        const std::int64_t batches = (tile.rows + kDenseBatch - 1) / kDenseBatch;
        const std::int64_t whole = batches * kDenseBatch, there = end - tile.first;
        tile.rows = whole < there ? whole : there;
        row = tile.first + tile.rows;
        multiply_tile(a, tile);
        continue;
      }
      std::int32_t* place = indices;
      list_offsets[0] = 0;
      for (std::int64_t r = 0; r < tile.rows; ++r) {
        place = list_row(a.spikes + (tile.first + r) * words + from / 64, words_of(inputs), place);
        list_offsets[r + 1] = static_cast<std::int32_t>(place - indices);
      }
      sum_tile(a, tile);
    }
  }
}

template <typename Real>
void pack(const Pack<Real>& a, std::int64_t begin, std::int64_t end) {
  const std::int64_t panels = (a.columns + kPanel<Real> - 1) / kPanel<Real>;
  for (std::int64_t panel = 0; panel < panels; ++panel) {
    const std::int64_t first = panel * kPanel<Real>;
    const std::int64_t valid = a.columns - first < kPanel<Real> ? a.columns - first : kPanel<Real>;
    // Tiles of kTile rows, a cache line: a transposed matrix, too, is read along its cache lines.
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
template void spike_sum(const SpikeSum<float>&, std::int64_t, std::int64_t);
template void spike_sum(const SpikeSum<double>&, std::int64_t, std::int64_t);
template void pack(const Pack<float>&, std::int64_t, std::int64_t);
template void pack(const Pack<double>&, std::int64_t, std::int64_t);

}  // namespace LATERNA_INSTRUCTION_SET
}  // namespace laterna::kernels
