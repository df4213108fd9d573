// Shared by the kernels that add rows: compiler vector types, and sums that stay in registers while
// rows are added to them.
#pragma once

#include "model/kernels/cpu/kernels.h"

namespace laterna::kernels {
namespace LATERNA_INSTRUCTION_SET {

// Compiler vectors of the length of a register; the compiler keeps longer ones in memory.
#if defined(__AVX512F__)
#define LATERNA_VECTOR_BYTES 64
#elif defined(__AVX2__)
#define LATERNA_VECTOR_BYTES 32
#else
#define LATERNA_VECTOR_BYTES 16
#endif
template <typename Real>
struct Vector;
template <>
struct Vector<float> {
  typedef float Type __attribute__((vector_size(LATERNA_VECTOR_BYTES), aligned(4), may_alias));
};
template <>
struct Vector<double> {
  typedef double Type __attribute__((vector_size(LATERNA_VECTOR_BYTES), aligned(8), may_alias));
};
/// Bytes that hold spikes (0 and 1) or counts of spikes.
typedef std::uint8_t Bytes
    __attribute__((vector_size(LATERNA_VECTOR_BYTES), aligned(1), may_alias));

template <typename Real>
inline constexpr std::int64_t kLanes = LATERNA_VECTOR_BYTES / sizeof(Real);

/// Vectors that are accumulated at once, held in 32 registers (AVX-512) or 16. Dense multiplication
/// takes kDenseRows rows of kDenseVectors vectors.
inline constexpr int kVectorsAtOnce = 8;
#ifdef __AVX512F__
inline constexpr int kDenseVectors = 4;
#else
inline constexpr int kDenseVectors = 2;
#endif

static_assert(kPanel<float> % (kVectorsAtOnce * kLanes<float>) == 0 &&
              kStripe<float> % (kDenseVectors * kLanes<float>) == 0 && kTileInputs % 64 == 0);

/// Rows that are transposed together: a cache line of floats.
inline constexpr std::int64_t kTile = 16;

/// Loads `count` vectors from memory; store() is the reverse.
template <int count, typename Real>
inline void load(const Real* from, typename Vector<Real>::Type (&sum)[count]) {
#pragma GCC unroll 8
  for (int v = 0; v < count; ++v) {
    sum[v] = *reinterpret_cast<const typename Vector<Real>::Type*>(from + v * kLanes<Real>);
  }
}
template <int count, typename Real>
inline void store(const typename Vector<Real>::Type (&sum)[count], Real* to) {
#pragma GCC unroll 8
  for (int v = 0; v < count; ++v) {
    *reinterpret_cast<typename Vector<Real>::Type*>(to + v * kLanes<Real>) = sum[v];
  }
}

/// Stores the first `kept` elements of the vectors, or all if they have fewer.
template <int count, typename Real>
inline void store_within(const typename Vector<Real>::Type (&sum)[count], Real* to,
                         std::int64_t kept) {
  constexpr std::int64_t all = count * kLanes<Real>;
  if (kept >= all) return store<count>(sum, to);
  Real values[all];
  store<count>(sum, values);
  for (std::int64_t i = 0; i < kept; ++i) to[i] = values[i];
}

inline bool is_dense(double share, std::int64_t fired, std::int64_t rows, std::int64_t width) {
  return static_cast<double>(fired) > share * static_cast<double>(rows * width);
}

/// Adds to sum[r] the sum over i of factors[r * across + i * along] times row i of a matrix, in
/// ascending order; `sum` stays in registers. `matrix` points to a column of the first row.
template <int row_count, int count, typename Real>
inline __attribute__((always_inline)) void multiply_add(
    typename Vector<Real>::Type (&sum)[row_count][count], const Real* factors, std::int64_t across,
    std::int64_t along, const Real* matrix, std::int64_t stride, std::int64_t rows) {
  for (std::int64_t i = 0; i < rows; ++i, matrix += stride, factors += along) {
    typename Vector<Real>::Type row[count];
    load<count>(matrix, row);
#pragma GCC unroll 8
    for (int r = 0; r < row_count; ++r) {
      const Real factor = factors[r * across];
#pragma GCC unroll 8
      for (int v = 0; v < count; ++v) sum[r][v] += factor * row[v];
    }
  }
}

/// Adds to `sum` the vectors of the rows that a list names; `rows` points to a column of the first
/// row.
template <int count, typename Real, typename Index>
void add_rows(typename Vector<Real>::Type (&sum)[count], const Real* rows, std::int64_t stride,
              const Index* index, const Index* last) {
  using V = typename Vector<Real>::Type;
  for (; index < last; ++index) {
    const Real* row = rows + std::int64_t(*index) * stride;
#pragma GCC unroll 8
    for (int v = 0; v < count; ++v) sum[v] += *reinterpret_cast<const V*>(row + v * kLanes<Real>);
  }
}

}  // namespace LATERNA_INSTRUCTION_SET
}  // namespace laterna::kernels
