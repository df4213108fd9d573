// The leaky integrate-and-fire neuron of all kernels (spec section 1; eqs 1-3): charge, fire,
// reset, their backward pass and the surrogate derivatives of a spike, as vectorisable arithmetic.
// The exponential is written out because the compiler does not vectorise library calls: range
// reduction by ln 2 and a polynomial, relative error below 2e-7 in float and 3e-16 in double over
// its whole range (tests/model/kernels_test). The tensor operations of model/spiking/neuron.h are
// the same neuron.
#pragma once

#include <cstdint>

#include "model/kernels/cpu/kernels.h"

namespace laterna::kernels {
namespace LATERNA_INSTRUCTION_SET {

/// Returns U, the membrane V after the input current I of a step. V_reset is 0, so that without a
/// current the membrane leaks towards 0.
template <typename Real>
inline Real charge(Real v, Real current) {
  return v + (current - v) * Real(1 / kTau);  // eq 1: U = V + (I - (V - V_reset)) / tau
}

/// Returns the spike, 1 or 0.
template <typename Real>
inline Real fire(Real u, Real threshold) {
  return u >= threshold ? Real(1) : Real(0);  // eq 2: 1 where U >= V_th
}

/// Returns the membrane after the step.
template <typename Real>
inline Real reset(Real u, Real spike) {
  return u * (1 - spike);  // eq 3: V_reset where the neuron fired, else U; without a branch
}

/// Returns the gradient of U from those of the spike and of the membrane after the step. `slope`:
/// surrogate_derivative of U - V_th. The spike counts as a constant inside the reset.
template <typename Real>
inline Real fire_backward(Real grad_spike, Real slope, Real grad_v, Real spike) {
  return grad_spike * slope + grad_v * (1 - spike);
}

/// dU/dI and dU/dV of a charge (eq 1).
inline constexpr double kCurrentGradient = 1 / kTau, kMembraneGradient = 1 - 1 / kTau;

/// Returns exp(x) for x <= 0; below the logarithm of the smallest normal number the result is
/// constant.
inline float exp_of_negative(float x) {
  x = x < -87.0f ? -87.0f : x;
  const float shifted =
      x * 1.44269504088896341f + 12582912.0f;  // rounds to integer in the low bits
  const float n = shifted - 12582912.0f;
  const float r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
  float p = 1.0f / 5040;
  p = p * r + 1.0f / 720;
  p = p * r + 1.0f / 120;
  p = p * r + 1.0f / 24;
  p = p * r + 1.0f / 6;
  p = p * r + 0.5f;
  p = p * r + 1.0f;
  p = p * r + 1.0f;
  const auto power = (__builtin_bit_cast(std::int32_t, shifted) + 127) << 23;
  return p * __builtin_bit_cast(float, power);
}

inline double exp_of_negative(double x) {
  x = x < -708.0 ? -708.0 : x;
  const double shifted = x * 1.4426950408889634074 + 6755399441055744.0;
  const double n = shifted - 6755399441055744.0;
  const double r = (x - n * 6.93147180369123816490e-01) - n * 1.90821492927058770002e-10;
  double p = 1.0 / 6227020800.0;
  p = p * r + 1.0 / 479001600.0;
  p = p * r + 1.0 / 39916800.0;
  p = p * r + 1.0 / 3628800.0;
  p = p * r + 1.0 / 362880.0;
  p = p * r + 1.0 / 40320.0;
  p = p * r + 1.0 / 5040.0;
  p = p * r + 1.0 / 720.0;
  p = p * r + 1.0 / 120.0;
  p = p * r + 1.0 / 24.0;
  p = p * r + 1.0 / 6.0;
  p = p * r + 0.5;
  p = p * r + 1.0;
  p = p * r + 1.0;
  const auto power = (__builtin_bit_cast(std::int64_t, shifted) + 1023) << 52;
  return p * __builtin_bit_cast(double, power);
}

/// Returns a sig(a y) (1 - sig(a y)), a = 4.
template <typename Real>
inline Real sigmoid_derivative(Real y) {
  const Real x = 4 * y;
  const Real e = exp_of_negative(x < 0 ? x : -x);
  const Real d = 1 + e;
  return 4 * e / (d * d);
}

/// Returns (a/2) / (1 + (pi a y / 2)^2), a = 2.
template <typename Real>
inline Real arctangent_derivative(Real y) {
  const Real x = Real(3.14159265358979323846) * y;
  return 1 / (1 + x * x);
}

/// Returns the surrogate derivative of a spike with respect to y = U - V_th.
template <typename Real>
inline Real surrogate_derivative(Surrogate kind, Real y) {
  return kind == Surrogate::kSigmoid ? sigmoid_derivative(y) : arctangent_derivative(y);
}

}  // namespace LATERNA_INSTRUCTION_SET
}  // namespace laterna::kernels
