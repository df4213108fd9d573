// The optimiser's operations on flat buffers: the sum of squares for norms; and AdamW with the
// running average of the weights in one pass over memory, which reads five streams and writes four
// once, where a sequence of tensor operations would make about ten passes.
#include "model/kernels/cpu/kernels.h"

namespace laterna::kernels {
namespace LATERNA_INSTRUCTION_SET {

template <typename Real>
void adamw(const AdamW<Real>& a, std::int64_t begin, std::int64_t end) {
  const Real rate = a.learning_rate / a.correction1;
  const Real root = Real(__builtin_sqrt(a.correction2));
#pragma omp simd
  for (std::int64_t i = begin; i < end; ++i) {
    const Real g = a.gradient[i] * a.gradient_scale;
    const Real m = a.beta1 * a.first[i] + (1 - a.beta1) * g;
    const Real v = a.beta2 * a.second[i] + (1 - a.beta2) * g * g;
    const Real w = a.weight[i] - rate * m / (Real(__builtin_sqrt(v)) / root + a.epsilon);
    a.first[i] = m;
    a.second[i] = v;
    a.weight[i] = w;
    a.average[i] += (1 - a.average_decay) * (w - a.average[i]);
  }
}

template <typename Real>
double sum_of_squares(const Real* values, std::int64_t count) {
  // A fixed number of lanes, so that the order of addition does not depend on the vector length.
  constexpr int kLanes = 32;
  double lanes[kLanes] = {};
  std::int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) {
#pragma omp simd
    for (int lane = 0; lane < kLanes; ++lane) {
      lanes[lane] += double(values[i + lane]) * double(values[i + lane]);
    }
  }
  for (; i < count; ++i) lanes[0] += double(values[i]) * double(values[i]);
  double sum = 0;
  for (const double lane : lanes) sum += lane;
  return sum;
}

template double sum_of_squares(const float*, std::int64_t);
template double sum_of_squares(const double*, std::int64_t);
template void adamw(const AdamW<float>&, std::int64_t, std::int64_t);
template void adamw(const AdamW<double>&, std::int64_t, std::int64_t);

}  // namespace LATERNA_INSTRUCTION_SET
}  // namespace laterna::kernels
