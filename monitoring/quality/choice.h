// Random choice of the samples that an evaluation uses. Each choice is a function of its purpose
// and an index (Philox with a fixed seed), so the same features give the same figures on any
// machine.
#pragma once

#include <cstdint>
#include <numeric>
#include <utility>
#include <vector>

#include "data/philox.h"

namespace laterna::monitoring {

/// Purpose of a random choice; each purpose has separate random numbers.
enum class Choice : std::uint64_t {
  bootstrap = 0,
  frechet_infinity = 1,
  kernel_generated = 2,
  kernel_reference = 3,
  manifold_generated = 4,
  manifold_reference = 5,
};

/// Returns the random numbers of choice `index`. The seed is fixed and independent of
/// training.seed.
inline data::RandomSequence random_choice(Choice choice, std::int64_t index) {
  constexpr std::uint64_t kSeed = 0x66726563686574;  // "frechet"
  return {kSeed, data::Stream::permutation, static_cast<std::uint64_t>(choice),
          static_cast<std::uint32_t>(index)};
}

/// Returns `count` distinct numbers of 0..n-1 in random order; a permutation where count is n.
inline std::vector<std::int64_t> choose(std::int64_t n, std::int64_t count, Choice choice,
                                        std::int64_t index) {
  std::vector<std::int64_t> chosen(n);
  std::iota(chosen.begin(), chosen.end(), 0);
  auto random = random_choice(choice, index);
  for (std::int64_t i = 0; i < count; ++i) {
    std::swap(chosen[i], chosen[i + random.below(static_cast<std::uint32_t>(n - i))]);
  }
  chosen.resize(count);
  return chosen;
}

}  // namespace laterna::monitoring
