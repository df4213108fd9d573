#include "dist/content_hash.h"

#include <array>
#include <bit>
#include <cstring>

namespace laterna::dist {
namespace {

// Odd multipliers (xxHash64's primes): multiplication by an odd number is a bijection of 64-bit
// words, as are rotation and exclusive or, so a change in one word can never cancel out.
constexpr std::uint64_t kFirst = 0x9E3779B185EBCA87ULL;
constexpr std::uint64_t kSecond = 0xC2B2AE3D27D4EB4FULL;

using Lanes = std::array<std::uint64_t, 4>;

void absorb(Lanes& lanes, const std::byte* block) {
  Lanes words;
  std::memcpy(words.data(), block, sizeof(words));
  for (std::size_t i = 0; i < lanes.size(); ++i) {
    lanes[i] = std::rotl(lanes[i] ^ (words[i] * kFirst), 31) * kSecond;
  }
}

}  // namespace

std::uint64_t content_hash(std::span<const std::byte> bytes) {
  Lanes lanes = {kFirst, kSecond, ~kFirst, ~kSecond};
  std::size_t done = 0;
  for (; done + sizeof(Lanes) <= bytes.size(); done += sizeof(Lanes)) {
    absorb(lanes, bytes.data() + done);
  }
  if (done < bytes.size()) {  // the rest, zero-padded; the length below tells it from real zeros
    std::array<std::byte, sizeof(Lanes)> rest = {};
    std::memcpy(rest.data(), bytes.data() + done, bytes.size() - done);
    absorb(lanes, rest.data());
  }
  std::uint64_t hash = bytes.size() * kSecond;
  for (const std::uint64_t lane : lanes) {
    hash = (hash ^ lane) * kFirst;
    hash ^= hash >> 32;
  }
  return hash;
}

}  // namespace laterna::dist
