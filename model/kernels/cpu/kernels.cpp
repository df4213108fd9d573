// Selects, once per process, the kernels of the best instruction set that the processor has. The
// environment variable LATERNA_KERNELS (avx512, avx2, portable) selects another set, so that tests
// can reach each of them.
#include "model/kernels/cpu/kernels.h"

#include <cstdlib>
#include <stdexcept>
#include <string>

namespace laterna::kernels {

#define LATERNA_KERNEL_SET(set)                                                            \
  namespace set {                                                                          \
  template <typename Real>                                                                 \
  void norm_lif_forward(const NormLif<Real>&, std::int64_t, std::int64_t);                 \
  template <typename Real>                                                                 \
  void norm_lif_backward(const NormLif<Real>&, std::int64_t, std::int64_t);                \
  template <typename Real>                                                                 \
  void attention_forward(const Attention<Real>&, std::int64_t, std::int64_t);              \
  template <typename Real>                                                                 \
  void attention_backward(const Attention<Real>&, std::int64_t, std::int64_t);             \
  template <typename Real>                                                                 \
  void routing_forward(const Routing<Real>&, std::int64_t, std::int64_t);                  \
  template <typename Real>                                                                 \
  void routing_backward(const Routing<Real>&, std::int64_t, std::int64_t);                 \
  template <typename Real>                                                                 \
  void combine_forward(const Combine<Real>&, std::int64_t, std::int64_t);                  \
  template <typename Real>                                                                 \
  void combine_backward(const Combine<Real>&, std::int64_t, std::int64_t);                 \
  template <typename Real>                                                                 \
  void pack_rows(const Real*, std::int64_t, std::uint64_t*, std::int64_t, std::int64_t);   \
  template <typename Real>                                                                 \
  void unpack_rows(const std::uint64_t*, std::int64_t, Real*, std::int64_t, std::int64_t); \
  template <typename Real>                                                                 \
  void spike_sum(const SpikeSum<Real>&, std::int64_t, std::int64_t);                       \
  void transpose_lists(const TransposedLists&, std::int64_t, std::int64_t);                \
  template <typename Real>                                                                 \
  void weight_gradient(const WeightGradient<Real>&, std::int64_t, std::int64_t);           \
  template <typename Real>                                                                 \
  void pack(const Pack<Real>&, std::int64_t, std::int64_t);                                \
  template <typename Real>                                                                 \
  void adamw(const AdamW<Real>&, std::int64_t, std::int64_t);                              \
  template <typename Real>                                                                 \
  double sum_of_squares(const Real*, std::int64_t);                                        \
  template <typename Real>                                                                 \
  Kernels<Real> table() {                                                                  \
    return {#set,                                                                          \
            norm_lif_forward<Real>,                                                        \
            norm_lif_backward<Real>,                                                       \
            attention_forward<Real>,                                                       \
            attention_backward<Real>,                                                      \
            routing_forward<Real>,                                                         \
            routing_backward<Real>,                                                        \
            combine_forward<Real>,                                                         \
            combine_backward<Real>,                                                        \
            pack_rows<Real>,                                                               \
            unpack_rows<Real>,                                                             \
            spike_sum<Real>,                                                               \
            transpose_lists,                                                               \
            weight_gradient<Real>,                                                         \
            pack<Real>,                                                                    \
            adamw<Real>,                                                                   \
            sum_of_squares<Real>};                                                         \
  }                                                                                        \
  }

LATERNA_KERNEL_SET(portable)
#ifdef LATERNA_X86
LATERNA_KERNEL_SET(avx2)
LATERNA_KERNEL_SET(avx512)
#endif

namespace {

template <typename Real>
Kernels<Real> choose() {
  const char* wish = std::getenv("LATERNA_KERNELS");
  const std::string wanted = wish ? wish : "";
#ifdef LATERNA_X86
  if ((wanted.empty() || wanted == "avx512") && __builtin_cpu_supports("x86-64-v4")) {
    return avx512::table<Real>();
  }
  if ((wanted.empty() || wanted == "avx2") && __builtin_cpu_supports("x86-64-v3")) {
    return avx2::table<Real>();
  }
#endif
  if (wanted.empty() || wanted == "portable") return portable::table<Real>();
  throw std::runtime_error("LATERNA_KERNELS=" + wanted +
                           ": this processor or build has no such kernels; allowed: avx512, avx2, "
                           "portable");
}

}  // namespace

template <typename Real>
const Kernels<Real>& kernels() {
  static const Kernels<Real> chosen = choose<Real>();
  return chosen;
}

template const Kernels<float>& kernels();
template const Kernels<double>& kernels();

}  // namespace laterna::kernels
