// Softmax-free attention on spikes: k^T v and q (k^T v) add rows for active entries only. Sums of
// spikes are integers and so exact in any order: k^T v is summed in bytes, 64 columns at once. (The
// alternative, AND and popcount of k and v over the tokens, takes the same time at any density:
// longer than bytes below a density of one third, and three times as long without a vector popcount
// instruction.) The backward pass is spike-driven as well, except for the gradient of q, which
// multiplies a dense gradient by the counts; it recomputes the currents from the bits instead of
// storing them.
#include <cstring>

#include "model/kernels/cpu/bit_rows.h"
#include "model/kernels/cpu/kernels.h"
#include "model/kernels/cpu/spike_vectors.h"
#include "model/kernels/neuron.h"

namespace laterna::kernels {
namespace LATERNA_INSTRUCTION_SET {
namespace {

constexpr int kParts = 64 / LATERNA_VECTOR_BYTES;  // vectors in 64 bytes

/// Expands 64 bits to 64 bytes, 0 or 1 each.
void spread(std::uint64_t bits, Bytes (&bytes)[kParts]) {
#ifdef __AVX512BW__
  bytes[0] = reinterpret_cast<Bytes>(_mm512_maskz_set1_epi8(bits, 1));
#else
  std::uint64_t parts[8];
  for (int i = 0; i < 8; ++i, bits >>= 8) {
    // The product holds copies of the low seven bits, each shifted by seven more, so that bit i is
    // in the lowest place of byte i; bit 7 is added separately.
    parts[i] = ((bits & 0x7f) * 0x0002040810204081 & 0x0101010101010101) | (bits & 0x80) << 49;
  }
  std::memcpy(bytes, parts, sizeof(bytes));
#endif
}

template <typename Real>
void clear(Real* into, std::int64_t n) {
  for (std::int64_t i = 0; i < n; ++i) into[i] = 0;
}

/// One head of one sample: access to its bits and gradients at spiking step t and token m.
template <typename Real>
struct Head {
  const Attention<Real>& a;
  std::int64_t sample, head;

  std::int64_t width() const { return a.head_width; }
  std::int64_t stride() const { return attention_stride<Real>(width()); }
  std::int64_t depth() const { return a.heads * a.head_width; }
  std::int64_t row(std::int64_t t, std::int64_t m) const {
    return (t * a.batch + sample) * a.tokens + m;
  }
  /// Returns the row of q (which = 0), k (1) or v (2), of all heads.
  const std::uint64_t* qkv(std::int64_t t, std::int64_t m, std::int64_t which) const {
    return a.qkv + (row(t, m) * 3 + which) * words_of(depth());
  }
  std::uint64_t* spikes(std::int64_t t, std::int64_t m) const {
    return a.spikes + row(t, m) * words_of(depth());
  }
  const Real* grad_spikes(std::int64_t t, std::int64_t m) const {
    return a.grad_spikes + row(t, m) * depth() + head * width();
  }
  Real* grad_qkv(std::int64_t t, std::int64_t m, std::int64_t which) const {
    return a.grad_qkv + (row(t, m) * 3 + which) * depth() + head * width();
  }

  /// Calls run(first, count, word) for the head's part of a row of bits, up to 64 bits at a time.
  template <typename Run>
  void for_words(const std::uint64_t* bits, const Run& run) const {
    for (std::int64_t i = 0; i < width(); i += 64) {
      const std::int64_t count = width() - i < 64 ? width() - i : 64;
      run(i, count, some_bits(bits, head * width() + i, count));
    }
  }
  template <typename Call>
  void for_each_fired(const std::uint64_t* bits, const Call& call) const {
    for_words(bits, [&](std::int64_t first, std::int64_t, std::uint64_t word) {
      for_fired(&word, 1, [&](std::int64_t i) { call(first + i); });
    });
  }
  void unpack(const std::uint64_t* bits, Real* to) const {
    for_words(bits, [&](std::int64_t first, std::int64_t count, std::uint64_t word) {
      unpack_row(&word, count, to + first);
    });
  }
  /// Writes the head's part of a row of bits. Atomic where the part is not whole words, since
  /// another thread may write another head's bits of the same word.
  void pack(const Real* spikes, std::uint64_t* bits) const {
    for (std::int64_t i = 0; i < width(); i += 64) {
      const std::int64_t count = width() - i < 64 ? width() - i : 64;
      std::uint64_t word;
      pack_row(spikes + i, count, &word);
      const std::int64_t first = head * width() + i, shift = first % 64;
      if (count == 64 && shift == 0) {
        bits[first / 64] = word;
        continue;
      }
      __atomic_fetch_or(bits + first / 64, word << shift, __ATOMIC_RELAXED);
      if (shift + count > 64) {
        __atomic_fetch_or(bits + first / 64 + 1, word >> (64 - shift), __ATOMIC_RELAXED);
      }
    }
  }
};

/// Computes counts = k^T v at step t, [d, stride], with zeros in the padding columns. `bytes`:
/// scratch, [d, 64 words_of(d)].
template <typename Real>
void count_pairs(const Head<Real>& h, std::int64_t t, Real* counts, std::uint8_t* bytes) {
  constexpr std::int64_t kMost = 255;  // the largest count in a byte
  const std::int64_t n = h.width(), words = words_of(n), stride = h.stride();
  for (std::int64_t begin = 0; begin < h.a.tokens; begin += kMost) {
    const std::int64_t left = h.a.tokens - begin, end = begin + (left < kMost ? left : kMost);
    clear(bytes, 64 * n * words);
    for (std::int64_t m = begin; m < end; ++m) {
      h.for_words(h.qkv(t, m, 2), [&](std::int64_t column, std::int64_t, std::uint64_t word) {
        if (word == 0) return;
        Bytes values[kParts];
        spread(word, values);
        std::uint8_t* to = bytes + column;
        h.for_each_fired(h.qkv(t, m, 1), [&](std::int64_t i) {
          // Not auto: the deduced type would lose the reduced alignment of Bytes.
          Bytes* sums = reinterpret_cast<Bytes*>(to + 64 * words * i);
#pragma GCC unroll 4
          for (int part = 0; part < kParts; ++part) sums[part] += values[part];
        });
      });
    }
    for (std::int64_t i = 0; i < n; ++i) {
      const std::uint8_t* from = bytes + 64 * words * i;
      Real* row = counts + stride * i;
      if (begin == 0) {
        for (std::int64_t j = 0; j < stride; ++j) row[j] = from[j];
      } else {
        for (std::int64_t j = 0; j < stride; ++j) row[j] += from[j];
      }
    }
  }
}

/// Runs work.template operator()<count>(column) over the `stride` columns of a row, `most` vectors
/// at a time while that many are left, then one at a time.
template <typename Real, int most, typename Work>
void for_columns(std::int64_t stride, const Work& work) {
  constexpr std::int64_t lanes = kLanes<Real>;
  std::int64_t column = 0;
  for (; column + most * lanes <= stride; column += most * lanes) {
    work.template operator()<most>(column);
  }
  for (; column < stride; column += lanes) work.template operator()<1>(column);
}

/// Computes out [d] = factor * the sum of the rows of `rows` [d, stride] at which `bits` fires.
template <typename Real>
void add_fired(const Head<Real>& h, const std::uint64_t* bits, const Real* rows, Real factor,
               Real* out) {
  const std::int64_t n = h.width(), stride = h.stride();
  constexpr int most = 4 * kParts < kVectorsAtOnce ? 4 * kParts : kVectorsAtOnce;
  for_columns<Real, most>(stride, [&]<int count>(std::int64_t column) {
    typename Vector<Real>::Type sum[count] = {};
    h.for_each_fired(bits, [&](std::int64_t i) {
      typename Vector<Real>::Type row[count];
      load<count>(rows + stride * i + column, row);
#pragma GCC unroll 8
      for (int v = 0; v < count; ++v) sum[v] += row[v];
    });
#pragma GCC unroll 8
    for (int v = 0; v < count; ++v) sum[v] *= factor;
    store_within<count>(sum, out + column, n - column);
  });
}

/// Transposes a d x d matrix, [d, stride].
template <typename Real>
void transpose(const Head<Real>& h, const Real* from, Real* to) {
  const std::int64_t n = h.width(), stride = h.stride();
  for (std::int64_t i = 0; i < n; ++i) {
    for (std::int64_t j = 0; j < n; ++j) to[j * stride + i] = from[i * stride + j];
  }
}

/// Computes grad_current [M, stride] from the gradients of the spikes at step t, and carries
/// grad_membrane [M, d] one step back.
template <typename Real>
void neuron_backward(const Head<Real>& h, std::int64_t t, const Real* potential,
                     Real* grad_membrane, Real* grad_current, Real* spike) {
  const std::int64_t n = h.width();
  const Surrogate surrogate = h.a.surrogate;
  for (std::int64_t m = 0; m < h.a.tokens; ++m) {
    h.unpack(h.spikes(t, m), spike);
    const Real* grad_spike = h.grad_spikes(t, m);
    const Real* u = potential + m * n;
    Real* grad_v = grad_membrane + m * n;
    Real* grad_i = grad_current + m * h.stride();
#pragma omp simd
    for (std::int64_t j = 0; j < n; ++j) {
      const Real y = u[j] - h.a.threshold;
      const Real slope = surrogate_derivative(surrogate, y);
      const Real grad_u = fire_backward(grad_spike[j], slope, grad_v[j], spike[j]);
      grad_v[j] = grad_u * Real(kMembraneGradient);
      grad_i[j] = grad_u * Real(kCurrentGradient) * h.a.scale;
    }
  }
}

/// Computes the gradient of q for `row_count` tokens from m on: rows of `grad` times a dense matrix
/// [d, stride].
template <int row_count, typename Real>
void multiply_rows(const Head<Real>& h, std::int64_t t, std::int64_t m, const Real* grad,
                   const Real* matrix) {
  const std::int64_t n = h.width(), stride = h.stride();
  for_columns<Real, kDenseVectors>(stride, [&]<int count>(std::int64_t column) {
    typename Vector<Real>::Type sum[row_count][count] = {};
    multiply_add<row_count, count, Real>(sum, grad + m * stride, stride, 1, matrix + column, stride,
                                         n);
#pragma GCC unroll 8
    for (int r = 0; r < row_count; ++r) {
      store_within<count>(sum[r], h.grad_qkv(t, m + r, 0) + column, n - column);
    }
  });
}

/// Computes grad_counts = q^T grad by adding rows for active entries of q.
template <typename Real>
void gather_counts(const Head<Real>& h, std::int64_t t, const Real* grad, Real* grad_counts) {
  const std::int64_t stride = h.stride();
  clear(grad_counts, h.width() * stride);
  for (std::int64_t m = 0; m < h.a.tokens; ++m) {
    for_columns<Real, kVectorsAtOnce / 2>(stride, [&]<int count>(std::int64_t column) {
      typename Vector<Real>::Type row[count], sum[count];
      load<count>(grad + m * stride + column, row);
      h.for_each_fired(h.qkv(t, m, 0), [&](std::int64_t i) {
        Real* to = grad_counts + i * stride + column;
        load<count>(to, sum);
#pragma GCC unroll 8
        for (int v = 0; v < count; ++v) sum[v] += row[v];
        store<count>(sum, to);
      });
    });
  }
}

/// Computes the gradients of q, k and v at step t from `grad` [M, stride], that of the unscaled
/// products.
template <typename Real>
void products_backward(const Head<Real>& h, std::int64_t t, const Real* grad, const Real* counts,
                       Real* grad_counts, Real* turned) {
  transpose(h, counts, turned);
  std::int64_t m = 0;
  for (; m + kDenseRows <= h.a.tokens; m += kDenseRows) {
    multiply_rows<kDenseRows>(h, t, m, grad, turned);
  }
  for (; m < h.a.tokens; ++m) multiply_rows<1>(h, t, m, grad, turned);
  gather_counts(h, t, grad, grad_counts);
  transpose(h, grad_counts, turned);
  for (m = 0; m < h.a.tokens; ++m) {
    add_fired(h, h.qkv(t, m, 2), turned, Real(1), h.grad_qkv(t, m, 1));
    add_fired(h, h.qkv(t, m, 1), grad_counts, Real(1), h.grad_qkv(t, m, 2));
  }
}

}  // namespace

template <typename Real>
void attention_forward(const Attention<Real>& a, std::int64_t begin, std::int64_t end) {
  const std::int64_t n = a.head_width, stride = attention_stride<Real>(n);
  Real* counts = a.scratch;                 // [d, stride]
  Real* membrane = counts + n * stride;     // [M, d]
  Real* current = membrane + a.tokens * n;  // [d]
  Real* spike = current + n;                // [d]
  auto* bytes = reinterpret_cast<std::uint8_t*>(spike + n);
  for (std::int64_t item = begin; item < end; ++item) {
    const Head<Real> h{a, item / a.heads, item % a.heads};
    clear(membrane, a.tokens * n);
    for (std::int64_t t = 0; t < a.steps; ++t) {
      count_pairs(h, t, counts, bytes);
      for (std::int64_t m = 0; m < a.tokens; ++m) {
        add_fired(h, h.qkv(t, m, 0), counts, a.scale, current);
        Real* v = membrane + m * n;
#pragma omp simd
        for (std::int64_t j = 0; j < n; ++j) {
          const Real u = charge(v[j], current[j]);
          spike[j] = fire(u, a.threshold);
          v[j] = reset(u, spike[j]);
        }
        h.pack(spike, h.spikes(t, m));
      }
    }
  }
}

template <typename Real>
void attention_backward(const Attention<Real>& a, std::int64_t begin, std::int64_t end) {
  const std::int64_t n = a.head_width, stride = attention_stride<Real>(n);
  const std::int64_t area = a.tokens * n, square = n * stride;
  Real* counts = a.scratch;                            // [T, d, stride]
  Real* grad_counts = counts + a.steps * square;       // [d, stride]
  Real* turned = grad_counts + square;                 // [d, stride]
  Real* grad_current = turned + square;                // [M, stride]
  Real* potential = grad_current + a.tokens * stride;  // [T, M, d]
  Real* grad_membrane = potential + a.steps * area;    // [M, d]
  Real* spike = grad_membrane + area;                  // [d]
  auto* bytes = reinterpret_cast<std::uint8_t*>(spike + n);
  for (std::int64_t item = begin; item < end; ++item) {
    const Head<Real> h{a, item / a.heads, item % a.heads};
    for (std::int64_t t = 0; t < a.steps; ++t) {
      count_pairs(h, t, counts + t * square, bytes);
      for (std::int64_t m = 0; m < a.tokens; ++m) {
        Real* u = potential + t * area + m * n;
        add_fired(h, h.qkv(t, m, 0), counts + t * square, a.scale, u);
        if (t > 0) h.unpack(h.spikes(t - 1, m), spike);
        const Real* before = u - area;
        for (std::int64_t j = 0; j < n; ++j) {
          const Real v = t > 0 ? reset(before[j], spike[j]) : Real(0);
          u[j] = charge(v, u[j]);
        }
      }
    }
    clear(grad_membrane, area);
    for (std::int64_t t = a.steps - 1; t >= 0; --t) {
      neuron_backward(h, t, potential + t * area, grad_membrane, grad_current, spike);
      products_backward(h, t, grad_current, counts + t * square, grad_counts, turned);
    }
  }
}

template void attention_forward(const Attention<float>&, std::int64_t, std::int64_t);
template void attention_forward(const Attention<double>&, std::int64_t, std::int64_t);
template void attention_backward(const Attention<float>&, std::int64_t, std::int64_t);
template void attention_backward(const Attention<double>&, std::int64_t, std::int64_t);

}  // namespace LATERNA_INSTRUCTION_SET
}  // namespace laterna::kernels
