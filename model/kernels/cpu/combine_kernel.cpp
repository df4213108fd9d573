// Weighted sums of the candidates' outputs (eq 13), and their gradients: for each assignment, a
// token block for its output and a scalar for its gate.
#include "model/kernels/cpu/kernels.h"

namespace laterna::kernels {
namespace LATERNA_INSTRUCTION_SET {

template <typename Real>
void combine_forward(const Combine<Real>& a, std::int64_t begin, std::int64_t end) {
  for (std::int64_t item = begin; item < end; ++item) {
    Real* sum = a.sum + item * a.size;
    bool first = true;
    for (std::int64_t n = 0; n < a.candidates; ++n) {
      const std::int32_t assignment = a.assignments[item * a.candidates + n];
      if (assignment < 0) continue;
      const Real gate = a.gate ? a.gate[item * a.candidates + n] : Real(1);
      const Real* output = a.outputs + assignment * a.size;
      if (first) {
#pragma omp simd
        for (std::int64_t i = 0; i < a.size; ++i) sum[i] = gate * output[i];  // eq 13
      } else {
#pragma omp simd
        for (std::int64_t i = 0; i < a.size; ++i) sum[i] += gate * output[i];  // eq 13
      }
      first = false;
    }
    if (first) {
      for (std::int64_t i = 0; i < a.size; ++i) sum[i] = 0;
    }
  }
}

template <typename Real>
void combine_backward(const Combine<Real>& a, std::int64_t begin, std::int64_t end) {
  for (std::int64_t item = begin; item < end; ++item) {
    const Real* grad_sum = a.grad_sum + item * a.size;
    for (std::int64_t n = 0; n < a.candidates; ++n) {
      const std::int64_t edge = item * a.candidates + n;
      const std::int32_t assignment = a.assignments[edge];
      if (a.grad_gate) a.grad_gate[edge] = 0;
      if (assignment < 0) continue;
      const Real gate = a.gate ? a.gate[edge] : Real(1);
      Real* grad_output = a.grad_outputs + assignment * a.size;
#pragma omp simd
      for (std::int64_t i = 0; i < a.size; ++i) grad_output[i] = gate * grad_sum[i];
      if (!a.grad_gate) continue;
      const Real* output = a.outputs + assignment * a.size;
      Real product = 0;
#pragma omp simd reduction(+ : product)
      for (std::int64_t i = 0; i < a.size; ++i) product += grad_sum[i] * output[i];
      a.grad_gate[edge] = product;
    }
  }
}

template void combine_forward(const Combine<float>&, std::int64_t, std::int64_t);
template void combine_forward(const Combine<double>&, std::int64_t, std::int64_t);
template void combine_backward(const Combine<float>&, std::int64_t, std::int64_t);
template void combine_backward(const Combine<double>&, std::int64_t, std::int64_t);

}  // namespace LATERNA_INSTRUCTION_SET
}  // namespace laterna::kernels
