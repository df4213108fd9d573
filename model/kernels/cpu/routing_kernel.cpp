// The router of one layer (eqs 9-12) and its gradient, one sample at a time: a few hundred
// operations each, in double precision and in one fixed order.
#include "model/kernels/cpu/kernels.h"
#include "model/kernels/neuron.h"

namespace laterna::kernels {
namespace LATERNA_INSTRUCTION_SET {
namespace {

/// Computes the lateral neurons Omega of a sample at every step from its logits: potential U [T, N]
/// and spikes [T, N].
template <typename Real>
void lateral_neurons(const Routing<Real>& a, const double* logits, double* potential,
                     double* spikes) {
  const std::int64_t count = a.candidates;
  for (std::int64_t i = 0; i < count; ++i) {
    double current = 0;
    for (std::int64_t j = 0; j < count; ++j) {
      current += double(a.aggregation[i * count + j]) * logits[j];
    }
    double v = 0;
    for (std::int64_t t = 0; t < a.steps; ++t) {
      const double u = charge(v, current);
      const double spike = fire(u, double(*a.threshold));
      potential[t * count + i] = u;
      spikes[t * count + i] = spike;
      v = reset(u, spike);
    }
  }
}

template <typename Real>
void softmax(const double* logits, Real* probability, std::int64_t count) {
  double largest = logits[0];
  for (std::int64_t i = 1; i < count; ++i) largest = logits[i] > largest ? logits[i] : largest;
  double sum = 0;
  for (std::int64_t i = 0; i < count; ++i) sum += exp_of_negative(logits[i] - largest);
  for (std::int64_t i = 0; i < count; ++i) {
    probability[i] = Real(exp_of_negative(logits[i] - largest) / sum);
  }
}

/// Computes the gradient of one sample's logits, [N], through softmax and lateral correction; adds
/// to the gradients of gamma, Lambda and threshold.
template <typename Real>
void logits_backward(const Routing<Real>& a, std::int64_t sample, const double* logits,
                     const double* potential, const double* spikes, double* grad_logits,
                     double* grad_corrected, double* grad_membrane, double* grad_current) {
  const std::int64_t count = a.candidates;
  for (std::int64_t i = 0; i < count; ++i) {
    grad_logits[i] = grad_membrane[i] = grad_current[i] = 0;
  }
  for (std::int64_t t = a.steps - 1; t >= 0; --t) {
    const std::int64_t row = (t * a.batch + sample) * count;
    double projection = 0;
    for (std::int64_t i = 0; i < count; ++i) {
      projection += double(a.grad_probability[row + i]) * double(a.probability[row + i]);
    }
    for (std::int64_t i = 0; i < count; ++i) {
      grad_corrected[i] =
          a.probability[row + i] * (double(a.grad_probability[row + i]) - projection);
      grad_logits[i] += grad_corrected[i];
    }
    if (!a.gamma) continue;
    for (std::int64_t i = 0; i < count; ++i) {  // lhat = l - gamma Omega
      const double spike = spikes[t * count + i];
      *a.grad_gamma -= grad_corrected[i] * spike;
      const double y = potential[t * count + i] - double(*a.threshold);
      const double slope = surrogate_derivative(a.surrogate, y);
      const double grad_spike = -double(*a.gamma) * grad_corrected[i];
      *a.grad_threshold -= grad_spike * slope;
      const double grad_u = fire_backward(grad_spike, slope, grad_membrane[i], spike);
      grad_current[i] += grad_u * kCurrentGradient;
      grad_membrane[i] = grad_u * kMembraneGradient;
    }
  }
  if (!a.gamma) return;
  for (std::int64_t i = 0; i < count; ++i) {
    for (std::int64_t j = 0; j < count; ++j) {
      a.grad_aggregation[i * count + j] += grad_current[i] * logits[j];
      grad_logits[j] += grad_current[i] * double(a.aggregation[i * count + j]);
    }
  }
}

}  // namespace

template <typename Real>
void routing_forward(const Routing<Real>& a, std::int64_t begin, std::int64_t end) {
  const std::int64_t count = a.candidates;
  double* potential = a.scratch;
  double* spikes = potential + a.steps * count;
  double* logits = spikes + a.steps * count;
  double* corrected = logits + count;
  for (std::int64_t b = begin; b < end; ++b) {
    const Real* e = a.embedding + b * a.width;
    for (std::int64_t i = 0; i < count; ++i) {
      const Real* weight = a.weight + i * a.width;
      double sum = 0;
#pragma omp simd reduction(+ : sum)
      for (std::int64_t d = 0; d < a.width; ++d) sum += double(e[d]) * double(weight[d]);
      logits[i] = sum + double(a.bias[i]);  // eq 9
      a.logits[b * count + i] = logits[i];
    }
    if (a.gamma) lateral_neurons(a, logits, potential, spikes);
    for (std::int64_t t = 0; t < a.steps; ++t) {
      const std::int64_t row = (t * a.batch + b) * count;
      for (std::int64_t i = 0; i < count; ++i) {
        const double delta = a.gamma ? double(*a.gamma) * spikes[t * count + i] : 0;  // eq 10
        corrected[i] = logits[i] - delta;                                             // eq 11
        a.corrected[row + i] = corrected[i];
      }
      softmax(corrected, a.probability + row, count);
    }
  }
}

template <typename Real>
void routing_backward(const Routing<Real>& a, std::int64_t begin, std::int64_t end) {
  const std::int64_t count = a.candidates;
  double* potential = a.scratch;
  double* spikes = potential + a.steps * count;
  double* grad_logits = spikes + a.steps * count;
  double* rest = grad_logits + count;
  for (std::int64_t b = begin; b < end; ++b) {
    const double* logits = a.logits + b * count;
    if (a.gamma) lateral_neurons(a, logits, potential, spikes);
    logits_backward(a, b, logits, potential, spikes, grad_logits, rest, rest + count,
                    rest + 2 * count);
    const Real* e = a.embedding + b * a.width;
    Real* grad_e = a.grad_embedding + b * a.width;
    for (std::int64_t d = 0; d < a.width; ++d) grad_e[d] = 0;
    for (std::int64_t i = 0; i < count; ++i) {
      const double grad = grad_logits[i];
      const Real* weight = a.weight + i * a.width;
      double* grad_weight = a.grad_weight + i * a.width;
      a.grad_bias[i] += grad;
#pragma omp simd
      for (std::int64_t d = 0; d < a.width; ++d) {
        grad_weight[d] += grad * double(e[d]);
        grad_e[d] += Real(grad * double(weight[d]));
      }
    }
  }
}

template void routing_forward(const Routing<float>&, std::int64_t, std::int64_t);
template void routing_forward(const Routing<double>&, std::int64_t, std::int64_t);
template void routing_backward(const Routing<float>&, std::int64_t, std::int64_t);
template void routing_backward(const Routing<double>&, std::int64_t, std::int64_t);

}  // namespace LATERNA_INSTRUCTION_SET
}  // namespace laterna::kernels
