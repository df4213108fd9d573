// Random numbers as a function of where they are used: Philox4x32-10 (Salmon et al., "Parallel
// random numbers: as easy as 1, 2, 3", SC 2011) maps a key and a counter to four random words,
// without any state. The key and the counter are made of a number's address:
//   key     = seed (low word, high word)
//   counter = { element / 4, sample, step (low 32 bits), stream * 2^24 + step / 2^32 }
// and element % 4 selects the word. So a sample's noise does not depend on which rank draws it or
// when. Uniform: u = (w + 0.5) / 2^32 in double, never 0 or 1. Normal (Box-Muller in double): words
// w0, w1 give n0 = r cos(2 pi u1), n1 = r sin(2 pi u1), where r = sqrt(-2 ln u0); words w2, w3 give
// n2, n3 likewise. A float32 number is the double, rounded once.
#pragma once

#include <array>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <numbers>

namespace laterna::data {

/// The use of a number. The values are part of the reproducibility promise: never renumber them.
enum class Stream : std::uint32_t {
  noise = 0,           ///< noise of a training sample
  timestep = 1,        ///< diffusion step t_d of a training sample
  permutation = 2,     ///< order of the images in an epoch
  flip = 3,            ///< mirroring of a training sample
  glyphs = 4,          ///< the drawn digits
  initialisation = 5,  ///< initial values of the parameters
  sampling = 6,        ///< initial and ancestral noise of generated images
};

/// Philox4x32 with ten rounds, as in Random123 (whose known-answer vectors are in the tests).
struct Philox {
  using Block = std::array<std::uint32_t, 4>;

  static constexpr Block block(Block counter, std::array<std::uint32_t, 2> key) {
    for (int round = 0; round < 10; ++round) {
      const std::uint64_t a = std::uint64_t{0xD2511F53} * counter[0];
      const std::uint64_t b = std::uint64_t{0xCD9E8D57} * counter[2];
      counter = {
          static_cast<std::uint32_t>(b >> 32) ^ counter[1] ^ key[0], static_cast<std::uint32_t>(b),
          static_cast<std::uint32_t>(a >> 32) ^ counter[3] ^ key[1], static_cast<std::uint32_t>(a)};
      key[0] += 0x9E3779B9;
      key[1] += 0xBB67AE85;
    }
    return counter;
  }
};

/// Returns the four words at an address. `step` must be below 2^56.
constexpr Philox::Block random_block(std::uint64_t seed, Stream stream, std::uint64_t step,
                                     std::uint32_t sample, std::uint32_t block = 0) {
  const auto high = (static_cast<std::uint32_t>(stream) << 24) +
                    static_cast<std::uint32_t>((step >> 32) & 0xFFFFFF);
  return Philox::block({block, sample, static_cast<std::uint32_t>(step), high},
                       {static_cast<std::uint32_t>(seed), static_cast<std::uint32_t>(seed >> 32)});
}

/// Maps a word to a number in (0, 1).
constexpr double to_uniform(std::uint32_t word) { return (word + 0.5) * 0x1p-32; }

/// Maps four words to four independent standard normal numbers.
inline std::array<double, 4> to_normal(const Philox::Block& words) {
  std::array<double, 4> normal;
  for (int pair = 0; pair < 4; pair += 2) {
    const double radius = std::sqrt(-2 * std::log(to_uniform(words[pair])));
    const double angle = 2 * std::numbers::pi * to_uniform(words[pair + 1]);
    normal[pair] = radius * std::cos(angle);
    normal[pair + 1] = radius * std::sin(angle);
  }
  return normal;
}

/// Sets out[0..n) to the standard normal numbers of elements 0..n-1 at an address. Real: float or
/// double.
template <typename Real>
void fill_normal(Real* out, std::size_t n, std::uint64_t seed, Stream stream, std::uint64_t step,
                 std::uint32_t sample) {
  for (std::size_t start = 0; start < n; start += 4) {
    const auto block = static_cast<std::uint32_t>(start / 4);
    const std::array<double, 4> normal = to_normal(random_block(seed, stream, step, sample, block));
    for (std::size_t i = 0; i < 4 && start + i < n; ++i) {
      out[start + i] = static_cast<Real>(normal[i]);
    }
  }
}

/// Sets out[0..n) to the uniform numbers in (0, 1) of elements 0..n-1 at an address. Only double: a
/// float could round to 1.
inline void fill_uniform(double* out, std::size_t n, std::uint64_t seed, Stream stream,
                         std::uint64_t step, std::uint32_t sample) {
  for (std::size_t i = 0; i < n; ++i) {
    const auto block = static_cast<std::uint32_t>(i / 4);
    out[i] = to_uniform(random_block(seed, stream, step, sample, block)[i % 4]);
  }
}

/// Returns an integer in 0..bound-1 from one word: floor(word * bound / 2^32), which deviates from
/// uniform by less than bound / 2^32. The t_d of a training sample is random_below(1000, seed,
/// Stream::timestep, step, index).
constexpr std::uint32_t random_below(std::uint32_t bound, std::uint64_t seed, Stream stream,
                                     std::uint64_t step, std::uint32_t sample) {
  const std::uint32_t word = random_block(seed, stream, step, sample)[0];
  return static_cast<std::uint32_t>((std::uint64_t{word} * bound) >> 32);
}

/// Draws the numbers at an address one after another, for code that cannot tell beforehand how many
/// it needs (shuffles, glyphs). A copy continues with the same numbers.
class RandomSequence {
 public:
  RandomSequence(std::uint64_t seed, Stream stream, std::uint64_t step, std::uint32_t sample)
      : seed_(seed), stream_(stream), step_(step), sample_(sample) {}

  std::uint32_t word() {
    if (next_ % 4 == 0) {
      block_ = random_block(seed_, stream_, step_, sample_, static_cast<std::uint32_t>(next_ / 4));
    }
    return block_[next_++ % 4];
  }
  /// Returns a number in (0, 1).
  double uniform() { return to_uniform(word()); }
  /// Returns a number in (low, high).
  double uniform(double low, double high) { return low + (high - low) * uniform(); }
  /// Returns an integer in 0..bound-1, exactly uniform (Lemire's multiplication with rejection).
  std::uint32_t below(std::uint32_t bound) {
    const std::uint32_t threshold = -bound % bound;
    while (true) {
      const std::uint64_t product = std::uint64_t{word()} * bound;
      if (static_cast<std::uint32_t>(product) >= threshold) {
        return static_cast<std::uint32_t>(product >> 32);
      }
    }
  }

 private:
  std::uint64_t seed_;
  Stream stream_;
  std::uint64_t step_;
  std::uint32_t sample_;
  std::uint64_t next_ = 0;
  Philox::Block block_{};
};

}  // namespace laterna::data
