// Softmax-free attention on spikes: k^T v and q (k^T v) add rows for active entries only. The sums
// are of integers, so they are exact in any order. The backward pass is spike-driven as well, but
// for the gradient of q, which multiplies a dense gradient with the counts; it computes the
// currents anew from the bits instead of keeping them.
#include "model/kernels/bit_rows.h"
#include "model/kernels/kernels.h"
#include "model/kernels/surrogate.h"

namespace laterna::kernels {
namespace LATERNA_INSTRUCTION_SET {
namespace {

template <typename Real>
void add(Real* into, const Real* row, std::int64_t n) {
#pragma omp simd
  for (std::int64_t i = 0; i < n; ++i) into[i] += row[i];
}

template <typename Real>
void clear(Real* into, std::int64_t n) {
  for (std::int64_t i = 0; i < n; ++i) into[i] = 0;
}

/// One head of one sample: its bits of a row, and where its gradients lie, at spiking step t.
template <typename Real>
struct Head {
  const Attention<Real>& a;
  std::int64_t sample, head;

  std::int64_t width() const { return a.head_width; }
  std::int64_t depth() const { return a.heads * a.head_width; }
  std::int64_t row(std::int64_t t, std::int64_t m) const {
    return (t * a.batch + sample) * a.tokens + m;
  }
  /// Row of q (0), k (1) or v (2).
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

  /// run(first, count, word) for the head's part of a row of bits, up to 64 at a time.
  template <typename Run>
  void for_words(const std::uint64_t* bits, const Run& run) const {
    for (std::int64_t i = 0; i < width(); i += 64) {
      const std::int64_t count = width() - i < 64 ? width() - i : 64;
      run(i, count, some_bits(bits, head * width() + i, count));
    }
  }
  template <typename Visit>
  void for_each_fired(const std::uint64_t* bits, const Visit& visit) const {
    for_words(bits, [&](std::int64_t first, std::int64_t, std::uint64_t word) {
      for_fired(&word, 1, [&](std::int64_t i) { visit(first + i); });
    });
  }
  void unpack(const std::uint64_t* bits, Real* to) const {
    for_words(bits, [&](std::int64_t first, std::int64_t count, std::uint64_t word) {
      unpack_row(&word, count, to + first);
    });
  }
  /// Several heads share a word where a head's width is no multiple of 64, and threads the heads.
  void pack(const Real* spikes, std::uint64_t* bits) const {
    for (std::int64_t i = 0; i < width(); i += 64) {
      const std::int64_t count = width() - i < 64 ? width() - i : 64;
      std::uint64_t word;
      pack_row(spikes + i, count, &word);
      const std::int64_t first = head * width() + i, shift = first % 64;
      __atomic_fetch_or(bits + first / 64, word << shift, __ATOMIC_RELAXED);
      if (shift + count > 64) {
        __atomic_fetch_or(bits + first / 64 + 1, word >> (64 - shift), __ATOMIC_RELAXED);
      }
    }
  }
};

/// counts = k^T v at step t, [d, d]; `values` is scratch for a row of v.
template <typename Real>
void count_pairs(const Head<Real>& h, std::int64_t t, Real* counts, Real* values) {
  const std::int64_t n = h.width();
  clear(counts, n * n);
  for (std::int64_t m = 0; m < h.a.tokens; ++m) {
    h.unpack(h.qkv(t, m, 2), values);
    h.for_each_fired(h.qkv(t, m, 1), [&](std::int64_t i) { add(counts + i * n, values, n); });
  }
}

/// current = scale * q (k^T v), of one token.
template <typename Real>
void charge(const Head<Real>& h, const std::uint64_t* q, const Real* counts, Real* current) {
  const std::int64_t n = h.width();
  clear(current, n);
  h.for_each_fired(q, [&](std::int64_t i) { add(current, counts + i * n, n); });
  for (std::int64_t j = 0; j < n; ++j) current[j] *= h.a.scale;
}

template <typename Real>
void transpose(const Real* from, Real* to, std::int64_t n) {
  for (std::int64_t i = 0; i < n; ++i) {
    for (std::int64_t j = 0; j < n; ++j) to[j * n + i] = from[i * n + j];
  }
}

/// grad_current [M, d] from the spikes' gradients at step t; carries grad_membrane [M, d] one step
/// back.
template <typename Real>
void neuron_backward(const Head<Real>& h, std::int64_t t, const Real* potential,
                     Real* grad_membrane, Real* grad_current, Real* spike) {
  const std::int64_t n = h.width();
  const bool sigmoid = h.a.surrogate == Surrogate::kSigmoid;
  for (std::int64_t m = 0; m < h.a.tokens; ++m) {
    h.unpack(h.spikes(t, m), spike);
    const Real* grad_spike = h.grad_spikes(t, m);
    const Real* u = potential + m * n;
    Real* grad_v = grad_membrane + m * n;
    Real* grad_i = grad_current + m * n;
#pragma omp simd
    for (std::int64_t j = 0; j < n; ++j) {
      const Real y = u[j] - h.a.threshold;
      const Real slope = sigmoid ? sigmoid_derivative(y) : arctangent_derivative(y);
      const Real grad = (grad_spike[j] * slope + grad_v[j] * (1 - spike[j])) * Real(0.5);
      grad_v[j] = grad;
      grad_i[j] = grad * h.a.scale;
    }
  }
}

/// out = row * matrix [n, n], the sums of some columns in registers.
template <typename Real>
void multiply_row(const Real* row, const Real* matrix, std::int64_t n, Real* out) {
  constexpr std::int64_t kColumns = 128 / sizeof(Real);
  std::int64_t i = 0;
  for (; i + kColumns <= n; i += kColumns) {
    Real sum[kColumns] = {};
    for (std::int64_t j = 0; j < n; ++j) {
#pragma omp simd
      for (std::int64_t c = 0; c < kColumns; ++c) sum[c] += row[j] * matrix[j * n + i + c];
    }
    for (std::int64_t c = 0; c < kColumns; ++c) out[i + c] = sum[c];
  }
  if (i == n) return;
  clear(out + i, n - i);
  for (std::int64_t j = 0; j < n; ++j) {
    for (std::int64_t c = i; c < n; ++c) out[c] += row[j] * matrix[j * n + c];
  }
}

/// Gradients of q, k and v at step t from that of the unscaled products, grad [M, d].
template <typename Real>
void products_backward(const Head<Real>& h, std::int64_t t, const Real* grad, const Real* counts,
                       Real* grad_counts, Real* turned) {
  const std::int64_t n = h.width();
  transpose(counts, turned, n);
  clear(grad_counts, n * n);
  for (std::int64_t m = 0; m < h.a.tokens; ++m) {
    multiply_row(grad + m * n, turned, n, h.grad_qkv(t, m, 0));
    h.for_each_fired(h.qkv(t, m, 0),
                     [&](std::int64_t i) { add(grad_counts + i * n, grad + m * n, n); });
  }
  transpose(grad_counts, turned, n);
  for (std::int64_t m = 0; m < h.a.tokens; ++m) {
    Real* grad_k = h.grad_qkv(t, m, 1);
    Real* grad_v = h.grad_qkv(t, m, 2);
    clear(grad_k, n);
    clear(grad_v, n);
    h.for_each_fired(h.qkv(t, m, 2), [&](std::int64_t j) { add(grad_k, turned + j * n, n); });
    h.for_each_fired(h.qkv(t, m, 1), [&](std::int64_t j) { add(grad_v, grad_counts + j * n, n); });
  }
}

}  // namespace

template <typename Real>
void attention_forward(const Attention<Real>& a, std::int64_t begin, std::int64_t end) {
  const std::int64_t n = a.head_width;
  Real* counts = a.scratch;                 // [d, d]
  Real* membrane = counts + n * n;          // [M, d]
  Real* current = membrane + a.tokens * n;  // [d]
  Real* row = current + n;                  // [d] of v, then of the spikes
  for (std::int64_t item = begin; item < end; ++item) {
    const Head<Real> h{a, item / a.heads, item % a.heads};
    clear(membrane, a.tokens * n);
    for (std::int64_t t = 0; t < a.steps; ++t) {
      count_pairs(h, t, counts, row);
      for (std::int64_t m = 0; m < a.tokens; ++m) {
        charge(h, h.qkv(t, m, 0), counts, current);
        Real* v = membrane + m * n;
#pragma omp simd
        for (std::int64_t j = 0; j < n; ++j) {
          const Real u = v[j] + (current[j] - v[j]) * Real(0.5);
          const bool fires = u >= a.threshold;
          row[j] = fires ? Real(1) : Real(0);
          v[j] = fires ? Real(0) : u;
        }
        h.pack(row, h.spikes(t, m));
      }
    }
  }
}

template <typename Real>
void attention_backward(const Attention<Real>& a, std::int64_t begin, std::int64_t end) {
  const std::int64_t n = a.head_width, area = a.tokens * n, square = n * n;
  Real* counts = a.scratch;                          // [T, d, d]
  Real* grad_counts = counts + a.steps * square;     // [d, d]
  Real* turned = grad_counts + square;               // [d, d]
  Real* potential = turned + square;                 // [T, M, d]
  Real* grad_membrane = potential + a.steps * area;  // [M, d]
  Real* grad_current = grad_membrane + area;         // [M, d]
  Real* current = grad_current + area;               // [d]
  Real* row = current + n;                           // [d]
  for (std::int64_t item = begin; item < end; ++item) {
    const Head<Real> h{a, item / a.heads, item % a.heads};
    for (std::int64_t t = 0; t < a.steps; ++t) {
      count_pairs(h, t, counts + t * square, row);
      for (std::int64_t m = 0; m < a.tokens; ++m) {
        charge(h, h.qkv(t, m, 0), counts + t * square, current);
        if (t > 0) h.unpack(h.spikes(t - 1, m), row);
        Real* u = potential + t * area + m * n;
        const Real* before = u - area;
        for (std::int64_t j = 0; j < n; ++j) {
          const Real v = t > 0 ? before[j] * (1 - row[j]) : Real(0);
          u[j] = v + (current[j] - v) * Real(0.5);
        }
      }
    }
    clear(grad_membrane, area);
    for (std::int64_t t = a.steps - 1; t >= 0; --t) {
      neuron_backward(h, t, potential + t * area, grad_membrane, grad_current, row);
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
