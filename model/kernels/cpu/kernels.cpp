// Selects the kernels of the best instruction set that the processor has. The environment variable
// LATERNA_KERNELS (avx512, avx2, portable) selects another set for a process,
// use_instruction_set() for what follows in it.
#include "model/kernels/cpu/kernels.h"

#include <cstdlib>
#include <stdexcept>
#include <string>
#include <tuple>
#include <vector>

#include "model/kernels/cpu/instruction_sets.h"

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

struct Set {
  bool there;  // whether the processor has it
  std::tuple<Kernels<float>, Kernels<double>> kernels;
  std::string name() const { return std::get<0>(kernels).instruction_set; }
};

/// Returns the sets of this build, best first.
const std::vector<Set>& sets() {
  static const std::vector<Set> all{
#ifdef LATERNA_X86
      {__builtin_cpu_supports("x86-64-v4") != 0, {avx512::table<float>(), avx512::table<double>()}},
      {__builtin_cpu_supports("x86-64-v3") != 0, {avx2::table<float>(), avx2::table<double>()}},
#endif
      {true, {portable::table<float>(), portable::table<double>()}}};
  return all;
}

/// Returns the set called `name`, or the best one for an empty name; null where it is not there.
const Set* find(const std::string& name) {
  for (const auto& set : sets()) {
    if (set.there && (name.empty() || name == set.name())) return &set;
  }
  return nullptr;
}

/// Returns the set in use.
const Set*& current() {
  static const Set* chosen = [] {
    const char* wish = std::getenv("LATERNA_KERNELS");
    const std::string wanted = wish ? wish : "";
    const Set* found = find(wanted);
    if (!found) {
      throw std::runtime_error("LATERNA_KERNELS=" + wanted +
                               ": this processor or build has no such kernels; allowed: avx512, "
                               "avx2, portable");
    }
    return found;
  }();
  return chosen;
}

}  // namespace

std::vector<std::string> instruction_sets() {
  std::vector<std::string> names;
  for (const auto& set : sets()) names.push_back(set.name());
  return names;
}

bool use_instruction_set(const std::string& set) {
  const Set* found = find(set);
  if (found) current() = found;
  return found;
}

template <typename Real>
const Kernels<Real>& kernels() {
  return std::get<Kernels<Real>>(current()->kernels);
}

template const Kernels<float>& kernels();
template const Kernels<double>& kernels();

}  // namespace laterna::kernels
