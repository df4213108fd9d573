// Rows of spikes as bits: element i is bit i % 64 of word i / 64, and a row is padded with zeros to
// whole words. Bits take 32 times less memory than float32, and counting trailing zeros lists the
// elements that fired.
#pragma once

#include "model/kernels/cpu/kernels.h"

#if defined(__AVX512F__) || defined(__AVX2__)
#include <immintrin.h>
#endif

namespace laterna::kernels {
namespace LATERNA_INSTRUCTION_SET {

// Convert sixteen elements to bits and back, with vector instructions where they exist.
#if defined(__AVX512F__)
inline unsigned bits_of(const float* spikes) {
  return _mm512_cmp_ps_mask(_mm512_loadu_ps(spikes), _mm512_setzero_ps(), _CMP_NEQ_OQ);
}
inline unsigned bits_of(const double* spikes) {
  const auto half = [](const double* from) -> unsigned {
    return _mm512_cmp_pd_mask(_mm512_loadu_pd(from), _mm512_setzero_pd(), _CMP_NEQ_OQ);
  };
  return half(spikes) | half(spikes + 8) << 8;
}
inline void spikes_of(unsigned bits, float* spikes) {
  _mm512_storeu_ps(spikes, _mm512_maskz_mov_ps(static_cast<__mmask16>(bits), _mm512_set1_ps(1)));
}
inline void spikes_of(unsigned bits, double* spikes) {
  const __m512d one = _mm512_set1_pd(1);
  _mm512_storeu_pd(spikes, _mm512_maskz_mov_pd(static_cast<__mmask8>(bits), one));
  _mm512_storeu_pd(spikes + 8, _mm512_maskz_mov_pd(static_cast<__mmask8>(bits >> 8), one));
}
#else
#if defined(__AVX2__)
inline unsigned bits_of(const float* spikes) {
  const auto half = [](const float* from) {
    const __m256 fired = _mm256_cmp_ps(_mm256_loadu_ps(from), _mm256_setzero_ps(), _CMP_NEQ_OQ);
    return static_cast<unsigned>(_mm256_movemask_ps(fired));
  };
  return half(spikes) | half(spikes + 8) << 8;
}
#else
inline unsigned bits_of(const float* spikes) {
  unsigned bits = 0;
  for (int i = 0; i < 16; ++i) bits |= unsigned(spikes[i] != 0) << i;
  return bits;
}
#endif
inline unsigned bits_of(const double* spikes) {
  unsigned bits = 0;
  for (int i = 0; i < 16; ++i) bits |= unsigned(spikes[i] != 0) << i;
  return bits;
}
template <typename Real>
inline void spikes_of(unsigned bits, Real* spikes) {
#pragma omp simd
  for (int i = 0; i < 16; ++i) spikes[i] = static_cast<Real>((bits >> i) & 1);
}
#endif

/// Packs spikes [width], each 0 or 1, into bits [words_of(width)].
template <typename Real>
void pack_row(const Real* spikes, std::int64_t width, std::uint64_t* bits) {
  std::int64_t i = 0;
  for (; i + 64 <= width; i += 64) {
    const Real* from = spikes + i;
    *bits++ = std::uint64_t(bits_of(from)) | std::uint64_t(bits_of(from + 16)) << 16 |
              std::uint64_t(bits_of(from + 32)) << 32 | std::uint64_t(bits_of(from + 48)) << 48;
  }
  if (i == width) return;
  *bits = 0;
  for (std::int64_t b = 0; i < width; ++i, ++b) *bits |= std::uint64_t(spikes[i] != 0) << b;
}

/// Unpacks bits [words_of(width)] into spikes [width], each 0 or 1.
template <typename Real>
void unpack_row(const std::uint64_t* bits, std::int64_t width, Real* spikes) {
  std::int64_t i = 0;
  for (; i + 16 <= width; i += 16) {
    spikes_of(static_cast<unsigned>(bits[i / 64] >> (i % 64)) & 0xffffu, spikes + i);
  }
  for (; i < width; ++i) spikes[i] = static_cast<Real>((bits[i / 64] >> (i % 64)) & 1);
}

/// Calls call(i) for every element that fired, in ascending order.
template <typename Call>
inline void for_fired(const std::uint64_t* bits, std::int64_t words, const Call& call) {
  for (std::int64_t w = 0; w < words; ++w) {
    for (std::uint64_t word = bits[w]; word != 0; word &= word - 1) {
      call(64 * w + __builtin_ctzll(word));
    }
  }
}

/// Returns the number of elements that fired.
inline std::int64_t count_row(const std::uint64_t* bits, std::int64_t words) {
  std::int64_t fired = 0;
  for (std::int64_t w = 0; w < words; ++w) fired += __builtin_popcountll(bits[w]);
  return fired;
}

/// Writes the elements that fired, ascending, to `list`, which has space for all of them and
/// kListSlack more. Returns the end of the list.
inline std::int32_t* list_row(const std::uint64_t* bits, std::int64_t words, std::int32_t* list) {
#ifdef __AVX512F__
  __m512i number = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
  for (std::int64_t w = 0; w < words; ++w) {
    std::uint64_t word = bits[w];
    for (int part = 0; part < 4; ++part, word >>= 16) {
      // Not the form of compress that stores to memory: it takes some processors a hundred cycles.
      _mm512_storeu_si512(list, _mm512_maskz_compress_epi32(static_cast<__mmask16>(word), number));
      list += __builtin_popcount(static_cast<unsigned>(word & 0xffffu));
      number = _mm512_add_epi32(number, _mm512_set1_epi32(16));
    }
  }
#else
  for_fired(bits, words, [&](std::int64_t i) { *list++ = static_cast<std::int32_t>(i); });
#endif
  return list;
}

/// Returns `count` bits from bit `first` on; count is at most 64.
inline std::uint64_t some_bits(const std::uint64_t* bits, std::int64_t first, std::int64_t count) {
  const std::int64_t w = first / 64, shift = first % 64;
  std::uint64_t word = bits[w] >> shift;
  if (shift + count > 64) word |= bits[w + 1] << (64 - shift);
  return count == 64 ? word : word & ((std::uint64_t(1) << count) - 1);
}

}  // namespace LATERNA_INSTRUCTION_SET
}  // namespace laterna::kernels
