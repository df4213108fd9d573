// LayerNorm and LIF in one pass (spec section 1; eqs 1-3): the T rows of a token go through norm
// and neuron while they are in the first-level cache. The backward pass recomputes the membranes
// from the saved rows instead of storing them. The statistics of the norm are two-pass.
#include "model/kernels/cpu/bit_rows.h"
#include "model/kernels/cpu/kernels.h"
#include "model/kernels/neuron.h"

namespace laterna::kernels {
namespace LATERNA_INSTRUCTION_SET {
namespace {

constexpr double kEpsilon = 1e-5;  // of every LayerNorm

template <typename Real>
void statistics(const Real* row, std::int64_t width, Real& mean, Real& inverse_std) {
  Real sum = 0;
#pragma omp simd reduction(+ : sum)
  for (std::int64_t d = 0; d < width; ++d) sum += row[d];
  mean = sum / width;
  Real squares = 0;
  const Real centre = mean;
#pragma omp simd reduction(+ : squares)
  for (std::int64_t d = 0; d < width; ++d) squares += (row[d] - centre) * (row[d] - centre);
  inverse_std = 1 / __builtin_sqrt(squares / width + Real(kEpsilon));
}

/// Computes sum = input + delta + shift; one of the last two may be null.
template <typename Real>
void add_row(const Real* input, const Real* delta, const Real* shift, Real* sum,
             std::int64_t width) {
  if (delta && shift) {
#pragma omp simd
    for (std::int64_t d = 0; d < width; ++d) sum[d] = input[d] + delta[d] + shift[d];
  } else {
    const Real* other = delta ? delta : shift;
#pragma omp simd
    for (std::int64_t d = 0; d < width; ++d) sum[d] = input[d] + other[d];
  }
}

/// The steps [first, end) from the first to the last at which a sequence receives current: before
/// them the membrane is 0, and after them nothing reads it.
struct Active {
  Active(const std::int32_t* blocks, std::int64_t steps) : end(steps) {
    while (first < end && blocks[first] < 0) ++first;
    while (end > first && blocks[end - 1] < 0) --end;
  }
  std::int64_t first = 0, end;
};

template <typename Real>
void leak(Real* membrane, std::int64_t width) {
#pragma omp simd
  for (std::int64_t d = 0; d < width; ++d) membrane[d] = charge(membrane[d], Real(0));
}

/// The gradient of the membrane, one step without current back.
template <typename Real>
void leak_backward(Real* grad_membrane, std::int64_t width) {
#pragma omp simd
  for (std::int64_t d = 0; d < width; ++d) grad_membrane[d] *= Real(kMembraneGradient);
}

/// The backward pass of one group of one token through its T steps.
template <Surrogate kind, typename Real>
void backward_group(const NormLif<Real>& a, const std::int32_t* blocks, std::int64_t token,
                    std::int64_t group, std::int64_t parameters) {
  const std::int64_t width = a.width;
  const Real* weight = a.weight[parameters];
  const Real* bias = a.bias[parameters];
  Real* potential = a.scratch;                        // [steps, width] U
  Real* grad_membrane = potential + a.steps * width;  // [width]
  Real* grad_current = grad_membrane + width;         // [width]
  Real* spike = grad_current + width;                 // [width]
  Real* grad_weight = a.grad_parameters + parameters * 2 * width;
  Real* grad_bias = grad_weight + width;

  const auto row_of = [&](std::int32_t block) {
    return (std::int64_t(block) * a.tokens + token) * a.groups + group;
  };
  const Active active(blocks, a.steps);
  // While the membranes are recomputed, grad_membrane holds V.
  for (std::int64_t d = 0; d < width; ++d) grad_membrane[d] = 0;
  for (std::int64_t t = active.first; t < active.end; ++t) {
    if (blocks[t] < 0) {
      leak(grad_membrane, width);
      continue;
    }
    const std::int64_t row = row_of(blocks[t]);
    const Real* x = a.input + row * width;
    unpack_row(a.spikes + row * words_of(width), width, spike);
    const Real mean = a.mean[row], inverse_std = a.inverse_std[row];
    Real* u = potential + t * width;
#pragma omp simd
    for (std::int64_t d = 0; d < width; ++d) {
      const Real current = (x[d] - mean) * inverse_std * weight[d] + bias[d];
      u[d] = charge(grad_membrane[d], current);
      grad_membrane[d] = reset(u[d], spike[d]);
    }
  }

  for (std::int64_t d = 0; d < width; ++d) grad_membrane[d] = 0;
  for (std::int64_t t = active.end - 1; t >= active.first; --t) {
    if (blocks[t] < 0) {
      leak_backward(grad_membrane, width);
      continue;
    }
    const std::int64_t row = row_of(blocks[t]);
    const Real* x = a.input + row * width;
    unpack_row(a.spikes + row * words_of(width), width, spike);
    const Real* grad_spike = a.grad_spikes + row * width;
    const Real mean = a.mean[row], inverse_std = a.inverse_std[row];
    const Real* u = potential + t * width;
    Real sum = 0, projection = 0;
#pragma omp simd reduction(+ : sum, projection)
    for (std::int64_t d = 0; d < width; ++d) {
      const Real slope = surrogate_derivative(kind, u[d] - a.threshold);
      const Real grad_u = fire_backward(grad_spike[d], slope, grad_membrane[d], spike[d]);
      const Real grad = grad_u * Real(kCurrentGradient);
      grad_membrane[d] = grad_u * Real(kMembraneGradient);
      const Real normal = (x[d] - mean) * inverse_std;
      grad_weight[d] += grad * normal;
      grad_bias[d] += grad;
      const Real scaled = grad * weight[d];
      grad_current[d] = scaled;
      sum += scaled;
      projection += scaled * normal;
    }
    sum /= width;
    projection /= width;
    Real* out = a.grad_input + row * width;
    const Real* past = a.grad_sum ? a.grad_sum + row * width : nullptr;
#pragma omp simd
    for (std::int64_t d = 0; d < width; ++d) {
      const Real normal = (x[d] - mean) * inverse_std;
      out[d] = inverse_std * (grad_current[d] - sum - normal * projection) + (past ? past[d] : 0);
    }
  }
}

}  // namespace

template <typename Real>
void norm_lif_forward(const NormLif<Real>& a, std::int64_t begin, std::int64_t end) {
  const std::int64_t width = a.width;
  Real* membrane = a.scratch;
  Real* spikes = membrane + width;
  for (std::int64_t item = begin; item < end; ++item) {
    const std::int64_t sequence = item / a.tokens, token = item % a.tokens;
    const std::int32_t* blocks = a.blocks + sequence * a.steps;
    const std::int64_t first = a.parameter_groups ? a.parameter_groups[sequence] * a.groups : 0;
    const Active active(blocks, a.steps);
    for (std::int64_t group = 0; group < a.groups; ++group) {
      const Real* weight = a.weight[first + group];
      const Real* bias = a.bias[first + group];
      for (std::int64_t d = 0; d < width; ++d) membrane[d] = 0;
      for (std::int64_t t = active.first; t < active.end; ++t) {
        if (blocks[t] < 0) {
          leak(membrane, width);
          continue;
        }
        const std::int64_t row = (blocks[t] * a.tokens + token) * a.groups + group;
        const Real* x = a.input + row * width;
        if (a.sum) {
          add_row(x, a.delta ? a.delta + row * width : nullptr,
                  a.shift ? a.shift + sequence * width : nullptr, a.sum + row * width, width);
          x = a.sum + row * width;
        }
        Real mean, inverse_std;
        statistics(x, width, mean, inverse_std);
        a.mean[row] = mean;
        a.inverse_std[row] = inverse_std;
#pragma omp simd
        for (std::int64_t d = 0; d < width; ++d) {
          const Real current = (x[d] - mean) * inverse_std * weight[d] + bias[d];
          const Real u = charge(membrane[d], current);
          spikes[d] = fire(u, a.threshold);
          membrane[d] = reset(u, spikes[d]);
        }
        pack_row(spikes, width, a.spikes + row * words_of(width));
      }
    }
  }
}

template <typename Real>
void norm_lif_backward(const NormLif<Real>& a, std::int64_t begin, std::int64_t end) {
  for (std::int64_t item = begin; item < end; ++item) {
    const std::int64_t sequence = item / a.tokens, token = item % a.tokens;
    const std::int32_t* blocks = a.blocks + sequence * a.steps;
    const std::int64_t first = a.parameter_groups ? a.parameter_groups[sequence] * a.groups : 0;
    for (std::int64_t group = 0; group < a.groups; ++group) {
      if (a.surrogate == Surrogate::kSigmoid) {
        backward_group<Surrogate::kSigmoid>(a, blocks, token, group, first + group);
      } else {
        backward_group<Surrogate::kArctangent>(a, blocks, token, group, first + group);
      }
    }
  }
}

template void norm_lif_forward(const NormLif<float>&, std::int64_t, std::int64_t);
template void norm_lif_forward(const NormLif<double>&, std::int64_t, std::int64_t);
template void norm_lif_backward(const NormLif<float>&, std::int64_t, std::int64_t);
template void norm_lif_backward(const NormLif<double>&, std::int64_t, std::int64_t);

}  // namespace LATERNA_INSTRUCTION_SET
}  // namespace laterna::kernels
