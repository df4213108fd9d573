// Softmax-free attention on spikes: k^T v and q (k^T v) add rows for active entries only. The sums
// are of integers, so they are exact in any order. The backward pass is spike-driven as well, but
// for the gradient of q, which multiplies a dense gradient with the counts.
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

/// One head of one sample: where its rows lie at spiking step t.
template <typename Real>
struct Head {
  const Attention<Real>& a;
  std::int64_t sample, head;
  std::int64_t depth() const { return a.heads * a.head_width; }
  /// Offset of token m at step t in a [T, B, M, D] tensor.
  std::int64_t at(std::int64_t t, std::int64_t m) const {
    return ((t * a.batch + sample) * a.tokens + m) * depth() + head * a.head_width;
  }
  /// Offset of q (0), k (1) or v (2) in a [T, B, M, 3, D] tensor.
  std::int64_t at(std::int64_t t, std::int64_t m, std::int64_t which) const {
    return (((t * a.batch + sample) * a.tokens + m) * 3 + which) * depth() + head * a.head_width;
  }
};

/// counts = k^T v at step t, [d, d].
template <typename Real>
void count_pairs(const Head<Real>& h, std::int64_t t, Real* counts) {
  const std::int64_t n = h.a.head_width;
  clear(counts, n * n);
  for (std::int64_t m = 0; m < h.a.tokens; ++m) {
    const Real* k = h.a.qkv + h.at(t, m, 1);
    const Real* v = h.a.qkv + h.at(t, m, 2);
    for (std::int64_t i = 0; i < n; ++i) {
      if (k[i] != 0) add(counts + i * n, v, n);
    }
  }
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
                     Real* grad_membrane, Real* grad_current) {
  const std::int64_t n = h.a.head_width;
  const bool sigmoid = h.a.surrogate == Surrogate::kSigmoid;
  for (std::int64_t m = 0; m < h.a.tokens; ++m) {
    const Real* spike = h.a.spikes + h.at(t, m);
    const Real* grad_spike = h.a.grad_spikes + h.at(t, m);
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

/// Gradients of q, k and v at step t from that of the unscaled products, grad [M, d].
template <typename Real>
void products_backward(const Head<Real>& h, std::int64_t t, const Real* grad, Real* counts,
                       Real* grad_counts, Real* turned) {
  const std::int64_t n = h.a.head_width;
  count_pairs(h, t, counts);
  transpose(counts, turned, n);
  clear(grad_counts, n * n);
  for (std::int64_t m = 0; m < h.a.tokens; ++m) {
    const Real* q = h.a.qkv + h.at(t, m, 0);
    Real* grad_q = h.a.grad_qkv + h.at(t, m, 0);
    clear(grad_q, n);
    for (std::int64_t j = 0; j < n; ++j) {
      const Real g = grad[m * n + j];
      const Real* row = turned + j * n;
#pragma omp simd
      for (std::int64_t i = 0; i < n; ++i) grad_q[i] += g * row[i];
    }
    for (std::int64_t i = 0; i < n; ++i) {
      if (q[i] != 0) add(grad_counts + i * n, grad + m * n, n);
    }
  }
  transpose(grad_counts, turned, n);
  for (std::int64_t m = 0; m < h.a.tokens; ++m) {
    const Real* k = h.a.qkv + h.at(t, m, 1);
    const Real* v = h.a.qkv + h.at(t, m, 2);
    Real* grad_k = h.a.grad_qkv + h.at(t, m, 1);
    Real* grad_v = h.a.grad_qkv + h.at(t, m, 2);
    clear(grad_k, n);
    clear(grad_v, n);
    for (std::int64_t j = 0; j < n; ++j) {
      if (v[j] != 0) add(grad_k, turned + j * n, n);
      if (k[j] != 0) add(grad_v, grad_counts + j * n, n);
    }
  }
}

}  // namespace

template <typename Real>
void attention_forward(const Attention<Real>& a, std::int64_t begin, std::int64_t end) {
  const std::int64_t n = a.head_width;
  Real* counts = a.scratch;
  Real* membrane = counts + n * n;
  for (std::int64_t item = begin; item < end; ++item) {
    const Head<Real> h{a, item / a.heads, item % a.heads};
    clear(membrane, a.tokens * n);
    for (std::int64_t t = 0; t < a.steps; ++t) {
      count_pairs(h, t, counts);
      for (std::int64_t m = 0; m < a.tokens; ++m) {
        const Real* q = a.qkv + h.at(t, m, 0);
        Real* current = a.current + h.at(t, m);
        Real* spikes = a.spikes + h.at(t, m);
        Real* v = membrane + m * n;
        clear(current, n);
        for (std::int64_t i = 0; i < n; ++i) {
          if (q[i] != 0) add(current, counts + i * n, n);
        }
#pragma omp simd
        for (std::int64_t j = 0; j < n; ++j) {
          current[j] *= a.scale;
          const Real u = v[j] + (current[j] - v[j]) * Real(0.5);
          const bool fires = u >= a.threshold;
          spikes[j] = fires ? Real(1) : Real(0);
          v[j] = fires ? Real(0) : u;
        }
      }
    }
  }
}

template <typename Real>
void attention_backward(const Attention<Real>& a, std::int64_t begin, std::int64_t end) {
  const std::int64_t n = a.head_width, area = a.tokens * n;
  Real* counts = a.scratch;
  Real* grad_counts = counts + n * n;
  Real* turned = grad_counts + n * n;
  Real* potential = turned + n * n;                  // [T, M, d]
  Real* grad_membrane = potential + a.steps * area;  // [M, d]
  Real* grad_current = grad_membrane + area;         // [M, d]
  for (std::int64_t item = begin; item < end; ++item) {
    const Head<Real> h{a, item / a.heads, item % a.heads};
    for (std::int64_t t = 0; t < a.steps; ++t) {
      for (std::int64_t m = 0; m < a.tokens; ++m) {
        const Real* current = a.current + h.at(t, m);
        const Real* before_spike = t > 0 ? a.spikes + h.at(t - 1, m) : nullptr;
        Real* u = potential + t * area + m * n;
        const Real* before = u - area;
        for (std::int64_t j = 0; j < n; ++j) {
          const Real v = before_spike ? before[j] * (1 - before_spike[j]) : Real(0);
          u[j] = v + (current[j] - v) * Real(0.5);
        }
      }
    }
    clear(grad_membrane, area);
    for (std::int64_t t = a.steps - 1; t >= 0; --t) {
      neuron_backward(h, t, potential + t * area, grad_membrane, grad_current);
      products_backward(h, t, grad_current, counts, grad_counts, turned);
    }
  }
}

template void attention_forward(const Attention<float>&, std::int64_t, std::int64_t);
template void attention_forward(const Attention<double>&, std::int64_t, std::int64_t);
template void attention_backward(const Attention<float>&, std::int64_t, std::int64_t);
template void attention_backward(const Attention<double>&, std::int64_t, std::int64_t);

}  // namespace LATERNA_INSTRUCTION_SET
}  // namespace laterna::kernels
