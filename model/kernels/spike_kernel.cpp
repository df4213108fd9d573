// Products with spikes by adding rows: silence costs nothing. A list names the active inputs of a
// row; their weight rows are added in registers, a panel of columns at a time. The weight gradient
// is the same sum with the roles turned: for each input, the gradients of the rows in which it
// fired.
#include "model/kernels/kernels.h"

#ifdef __AVX512F__
#include <immintrin.h>
#endif

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
#else
constexpr int kVectorsAtOnce = 4;  // as two halves each, of 16 registers
#endif

/// `count` vectors of columns from `column` on of one panel, for the lists begin .. end-1.
template <int count, typename Real>
void sum_columns(const SpikeSum<Real>& a, const Real* panel, std::int64_t column,
                 std::int64_t valid, std::int64_t begin, std::int64_t end) {
  using V = typename Vector<Real>::Type;
  constexpr std::int64_t lanes = 64 / sizeof(Real), width = count * lanes;
  const std::int64_t inside = column % kPanel<Real>;
  Real spill[width];
  for (std::int64_t list = begin; list < end; ++list) {
    V sum[count];
    for (int v = 0; v < count; ++v) {
      for (std::int64_t lane = 0; lane < lanes; ++lane) {
        const std::int64_t c = v * lanes + lane;
        spill[c] = a.start && c < valid ? a.start[column + c] : Real(0);
      }
      sum[v] = *reinterpret_cast<const V*>(spill + v * lanes);
    }
    const std::int32_t* index = a.indices + a.starts[list];
    const std::int32_t* last = a.indices + a.starts[list + 1];
    for (; index < last; ++index) {
      const Real* row = panel + std::int64_t(*index) * kPanel<Real> + inside;
#pragma GCC unroll 8
      for (int v = 0; v < count; ++v) sum[v] += *reinterpret_cast<const V*>(row + v * lanes);
    }
    Real* out = a.out + list * a.columns + column;
    if (valid >= width) {
#pragma GCC unroll 8
      for (int v = 0; v < count; ++v) *reinterpret_cast<V*>(out + v * lanes) = sum[v];
    } else {
      for (int v = 0; v < count; ++v) *reinterpret_cast<V*>(spill + v * lanes) = sum[v];
      for (std::int64_t c = 0; c < valid; ++c) out[c] = spill[c];
    }
  }
}

constexpr std::int64_t kTile = 16;

void list_row(const float* spikes, std::int64_t width, std::int32_t* indices) {
  std::int64_t i = 0;
#ifdef __AVX512F__
  __m512i number = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
  for (; i + 16 <= width; i += 16) {
    const __mmask16 fired =
        _mm512_cmp_ps_mask(_mm512_loadu_ps(spikes + i), _mm512_setzero_ps(), _CMP_NEQ_OQ);
    _mm512_mask_compressstoreu_epi32(indices, fired, number);
    indices += __builtin_popcount(fired);
    number = _mm512_add_epi32(number, _mm512_set1_epi32(16));
  }
#endif
  for (; i < width; ++i) {
    if (spikes[i] != 0) *indices++ = static_cast<std::int32_t>(i);
  }
}

void list_row(const double* spikes, std::int64_t width, std::int32_t* indices) {
  for (std::int64_t i = 0; i < width; ++i) {
    if (spikes[i] != 0) *indices++ = static_cast<std::int32_t>(i);
  }
}

}  // namespace

template <typename Real>
void list_spikes(const SpikeLists<Real>& a, std::int64_t begin, std::int64_t end) {
  for (std::int64_t row = begin; row < end; ++row) {
    const Real* spikes = a.spikes + row * a.width;
    if (a.counts) {
      std::int32_t count = 0;
#pragma omp simd reduction(+ : count)
      for (std::int64_t i = 0; i < a.width; ++i) count += spikes[i] != 0;
      a.counts[row] = count;
    }
    if (a.indices) list_row(spikes, a.width, a.indices + a.starts[row]);
  }
}

template <typename Real>
void spike_sum(const SpikeSum<Real>& a, std::int64_t begin, std::int64_t end) {
  constexpr std::int64_t lanes = 64 / sizeof(Real), widest = kVectorsAtOnce * lanes;
  std::int64_t column = 0;
  while (column < a.columns) {
    const Real* panel = a.panels + column / kPanel<Real> * a.matrix_rows * kPanel<Real>;
    const std::int64_t left = a.columns - column;
    if (left > widest / 2) {
      sum_columns<kVectorsAtOnce>(a, panel, column, left, begin, end);
      column += widest;
    } else if (left > widest / 4) {
      sum_columns<kVectorsAtOnce / 2>(a, panel, column, left, begin, end);
      column += widest / 2;
    } else {
      sum_columns<kVectorsAtOnce / 4>(a, panel, column, left, begin, end);
      column += widest / 4;
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

template void list_spikes(const SpikeLists<float>&, std::int64_t, std::int64_t);
template void list_spikes(const SpikeLists<double>&, std::int64_t, std::int64_t);
template void spike_sum(const SpikeSum<float>&, std::int64_t, std::int64_t);
template void spike_sum(const SpikeSum<double>&, std::int64_t, std::int64_t);
template void pack(const Pack<float>&, std::int64_t, std::int64_t);
template void pack(const Pack<double>&, std::int64_t, std::int64_t);

}  // namespace LATERNA_INSTRUCTION_SET
}  // namespace laterna::kernels
