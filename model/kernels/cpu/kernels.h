// The model's fused CPU operations, as plain loops over raw memory. Each is compiled once for every
// instruction set (namespaces avx512, avx2, portable); kernels<Real>() returns the table of the
// best set that this processor has. The autograd functions that call them, and the references that
// the tests compare with, are in model/spiking/norm_lif, model/attention and model/candidates.
//
// Every kernel works on a range [begin, end) of independent items, so that a caller can divide the
// items among threads. Real is float or double. Spikes are bits packed in words of 64.
//
// Functions in this header are static: as inline functions, the one that was compiled for AVX-512
// could be linked into a program that runs on a processor without it.
#pragma once

#include <cstdint>

namespace laterna::kernels {

/// Returns the number of words in a row of `width` spikes.
static constexpr std::int64_t words_of(std::int64_t width) { return (width + 63) / 64; }

/// Time constant of every LIF neuron, in spiking steps (spec section 1).
inline constexpr double kTau = 2;

/// The surrogate derivative of a spike with respect to y = U - V_th (spec section 1, "LIF neuron").
enum class Surrogate : std::int32_t { kSigmoid, kArctangent };

/// LayerNorm over the last dimension, then a LIF layer over the T spiking steps (eqs 1-3);
/// optionally before it the residual sum input + delta + shift. Item i is token i % tokens of
/// sequence i / tokens. A sequence is one sample's path through T steps: `blocks[s, t]` is the
/// token block of step t, `tokens` rows, or -1 where the neurons receive no current and only leak.
template <typename Real>
struct NormLif {
  std::int64_t steps, tokens, groups, width;  // T, M, G (norms side by side in a row), D
  const std::int32_t* blocks;                 // [sequences, steps]
  const std::int32_t* parameter_groups;       // [sequences] index of the norm parameters; null: 0
  const Real* const* weight;                  // [parameter_groups * groups] pointers to [width]
  const Real* const* bias;                    // [parameter_groups * groups] pointers to [width]
  Real threshold;
  Surrogate surrogate;

  const Real* input;      // [blocks, tokens, groups, width]; backward: the sum, if there is one
  const Real* delta;      // like input, or null
  const Real* shift;      // [sequences, width], or null
  Real* sum;              // like input: input + delta + shift; null without delta and shift
  std::uint64_t* spikes;  // [blocks, tokens, groups, words_of(width)]
  Real* mean;             // [blocks, tokens, groups]
  Real* inverse_std;      // [blocks, tokens, groups]

  const Real* grad_spikes;  // like input
  const Real* grad_sum;     // like input, or null: gradient of the sum that bypasses the norm
  Real* grad_input;         // like input: gradient of the sum
  Real* grad_parameters;    // [parameter_groups * groups, 2, width] of this thread: added to
  Real* scratch;            // forward: 2 * width; backward: (steps + 3) * width
};

/// a = scale * q (k^T v) per head, on spikes, then a LIF layer (spec section 1, "attention"). Item
/// i is head i % heads of sample i / heads. Silent inputs cost nothing; sums of spikes are exact.
template <typename Real>
struct Attention {
  std::int64_t steps, batch, tokens, heads, head_width;  // T, B, M, A, D/A
  Real scale, threshold;
  Surrogate surrogate;

  const std::uint64_t* qkv;  // [T, B, M, 3, words_of(D)]
  std::uint64_t* spikes;     // [T, B, M, words_of(D)]; forward: the caller zeroes it

  const Real* grad_spikes;  // [T, B, M, D]
  Real* grad_qkv;           // [T, B, M, 3, D]
  Real* scratch;            // see attention_scratch
};

/// Returns the stride of a row of `width` counts (of k^T v), padded with zeros to whole vectors of
/// 64 bytes.
template <typename Real>
static inline std::int64_t attention_stride(std::int64_t width) {
  constexpr std::int64_t lanes = 64 / sizeof(Real);
  return (width + lanes - 1) / lanes * lanes;
}

/// Returns the elements of scratch that attention needs, forward or backward: Reals, then counts in
/// bytes.
template <typename Real>
static inline std::int64_t attention_scratch(std::int64_t steps, std::int64_t tokens,
                                             std::int64_t width, bool backward) {
  const std::int64_t stride = attention_stride<Real>(width), square = width * stride;
  const std::int64_t bytes = 64 * width * words_of(width) / std::int64_t(sizeof(Real));
  if (!backward) return square + tokens * width + 2 * width + bytes;
  return (steps + 2) * square + tokens * stride + (steps + 1) * tokens * width + width + bytes;
}

/// The router of one layer (eqs 9-12): logits, lateral correction over T steps, softmax. Item i is
/// sample i. Sums are in double precision and in one order for any batch, so that a sample's
/// selection depends neither on the other samples of its batch nor on the rank that computes it.
template <typename Real>
struct Routing {
  std::int64_t steps, batch, width, candidates;  // T, B, D, N
  const Real* embedding;                         // [B, D] SiLU(e)
  const Real* weight;                            // [N, D]
  const Real* bias;                              // [N]
  const Real* gamma;                             // [], or null: no lateral connection
  const Real* aggregation;                       // [N, N]
  const Real* threshold;                         // []
  Surrogate surrogate;
  double* logits;     // [B, N] l
  double* corrected;  // [T, B, N] lhat
  Real* probability;  // [T, B, N] P

  const Real* grad_probability;                            // [T, B, N]
  Real* grad_embedding;                                    // [B, D]: written
  double *grad_weight, *grad_bias;                         // [N, D], [N]: added to
  double *grad_gamma, *grad_aggregation, *grad_threshold;  // [], [N, N], []: added to
  double* scratch;                                         // (2 * steps + 5) * N
};

/// Weighted sums of the candidates' outputs, in candidate order. Item i is token block i of z, one
/// of T*B, with `size` Reals; `assignments[i, n]` is the index of its output from candidate n, -1
/// where there is none.
template <typename Real>
struct Combine {
  std::int64_t candidates, size;
  const std::int32_t* assignments;  // [items, candidates]
  const Real* gate;                 // [items, candidates], null: all one
  const Real* outputs;              // [assignments, size]
  Real* sum;                        // [items, size]
  const Real* grad_sum;             // [items, size]
  Real* grad_outputs;               // [assignments, size]
  Real* grad_gate;                  // [items, candidates]: 0 where there is no assignment
};

/// Columns of a panel. A matrix is packed as panels of this many columns, [panels, rows, kPanel],
/// the last one padded with zeros, so that the rows of a panel are adjacent in the cache.
template <typename Real>
inline constexpr std::int64_t kPanel = 512 / sizeof(Real);

/// The product of spikes with a matrix: out[i] = start + the sum of the matrix rows at which row i
/// of the spikes fires, in ascending order. Item i is row i. A tile of rows in which a share above
/// `dense_above` of the inputs fires is multiplied densely: in the same order, so with the same
/// bits as long as the matrix is finite.
template <typename Real>
struct SpikeSum {
  std::int64_t columns, matrix_rows;
  const std::uint64_t* spikes;  // [rows, words_of(matrix_rows)]
  const Real* panels;           // the packed matrix
  const Real* start;            // [columns]
  Real* out;                    // [rows, columns]
  double dense_above;
  std::int32_t* lists;  // scratch, [spike_sum_lists(matrix_rows)]
  Real* values;         // scratch, [kDenseBatch, kTileInputs]
};

/// Elements that may be written past the end of a list.
inline constexpr std::int64_t kListSlack = 16;

/// Limits of a tile: rows, listed spikes, inputs. A tile's lists are read once per panel: they stay
/// in the second-level cache together with kTileInputs rows of a panel.
inline constexpr std::int64_t kTileRows = 1024, kTilePlaces = 1 << 15, kTileInputs = 512;
inline constexpr std::int64_t kDenseRows = 6, kDenseBatch = 8 * kDenseRows;
static inline std::int64_t spike_sum_lists(std::int64_t matrix_rows) {
  const std::int64_t longest = matrix_rows < kTileInputs ? matrix_rows : kTileInputs;
  return kTileRows + 1 + kTilePlaces + 64 * words_of(longest) + kListSlack;
}

inline constexpr std::int64_t kBlockRows = 1024;  // at most; row numbers are uint16

/// For each block of block_rows rows of spikes and each input, the list of rows in which the input
/// fired. Item i is block i.
struct TransposedLists {
  std::int64_t rows, width, block_rows;
  const std::uint64_t* spikes;  // [rows, words_of(width)]
  const std::int64_t* offsets;  // [blocks + 1]: where the lists of a block begin in `indices`
  std::int32_t* list_offsets;   // [blocks, width + 1], relative to the block's offset
  std::uint16_t* indices;       // row numbers relative to the first row of the block
  double dense_above;           // a block with a larger share of active inputs gets no lists
};

/// Columns of a stripe, the columns of the weight gradient that are summed together.
template <typename Real>
inline constexpr std::int64_t kStripe = 256 / sizeof(Real);

/// The gradient of a weight [columns, width] whose inputs are spikes: for each input the sum of the
/// gradients [rows, columns] of the rows in which the input fired, in ascending order. Item i is
/// stripe i / ranges of kStripe columns and range i % ranges of the inputs. A block of rows in
/// which a share above `dense_above` of the inputs fired is multiplied densely, with the same bits.
template <typename Real>
struct WeightGradient {
  std::int64_t rows, width, block_rows, columns, ranges;
  const std::int64_t* offsets;  // offsets, list_offsets and indices of TransposedLists
  const std::int32_t* list_offsets;
  const std::uint16_t* indices;
  const std::uint64_t* spikes;  // [rows, words_of(width)]
  double dense_above;
  const Real* grad;  // [rows, columns]
  Real* out;         // [columns, width]
  Real* scratch;     // weight_gradient_scratch
};

inline constexpr std::int64_t kUnpackedRows = 128, kUnpackedInputs = 384;
inline constexpr std::int64_t kUnpackedStride = kUnpackedInputs + 64;  // rows start at a whole word
template <typename Real>
static inline std::int64_t weight_gradient_scratch(std::int64_t width) {
  return (kBlockRows + width) * kStripe<Real> + kUnpackedRows * kUnpackedStride;
}

/// Packs a matrix into panels. Item i is row i of the packed matrix.
template <typename Real>
struct Pack {
  std::int64_t rows, columns;
  std::int64_t row_stride, column_stride;  // of `matrix`: (1, ld) packs the transpose
  const Real* matrix;
  Real* panels;
};

/// One AdamW step without weight decay, and the running average of the weights, elementwise.
template <typename Real>
struct AdamW {
  Real *weight, *first, *second, *average;
  const Real* gradient;
  Real gradient_scale, learning_rate, beta1, beta2, epsilon;
  Real correction1, correction2;  // 1 - beta^step
  Real average_decay;
};

template <typename Real>
struct Kernels {
  const char* instruction_set;
  void (*norm_lif_forward)(const NormLif<Real>&, std::int64_t begin, std::int64_t end);
  void (*norm_lif_backward)(const NormLif<Real>&, std::int64_t begin, std::int64_t end);
  void (*attention_forward)(const Attention<Real>&, std::int64_t begin, std::int64_t end);
  void (*attention_backward)(const Attention<Real>&, std::int64_t begin, std::int64_t end);
  void (*routing_forward)(const Routing<Real>&, std::int64_t begin, std::int64_t end);
  void (*routing_backward)(const Routing<Real>&, std::int64_t begin, std::int64_t end);
  void (*combine_forward)(const Combine<Real>&, std::int64_t begin, std::int64_t end);
  void (*combine_backward)(const Combine<Real>&, std::int64_t begin, std::int64_t end);
  void (*pack_rows)(const Real* spikes, std::int64_t width, std::uint64_t* bits, std::int64_t begin,
                    std::int64_t end);
  void (*unpack_rows)(const std::uint64_t* bits, std::int64_t width, Real* spikes,
                      std::int64_t begin, std::int64_t end);
  void (*spike_sum)(const SpikeSum<Real>&, std::int64_t begin, std::int64_t end);
  void (*transpose_lists)(const TransposedLists&, std::int64_t begin, std::int64_t end);
  void (*weight_gradient)(const WeightGradient<Real>&, std::int64_t begin, std::int64_t end);
  void (*pack)(const Pack<Real>&, std::int64_t begin, std::int64_t end);
  void (*adamw)(const AdamW<Real>&, std::int64_t begin, std::int64_t end);
  double (*sum_of_squares)(const Real* values, std::int64_t count);
};

/// Returns the kernels of the best instruction set that this processor has.
template <typename Real>
const Kernels<Real>& kernels();

}  // namespace laterna::kernels
