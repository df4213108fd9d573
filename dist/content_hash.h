// A quick 64-bit hash of bytes, to compare what ranks hold: not for files (which have SHA-256) and
// not safe against malice. Four independent lanes of eight bytes each keep up with memory
// bandwidth.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

namespace laterna::dist {

/// Returns the hash of `bytes`, the same on every little-endian machine. Every single-bit
/// difference between inputs of equal length changes the hash; other differences go unnoticed with
/// probability 2^-64.
std::uint64_t content_hash(std::span<const std::byte> bytes);

}  // namespace laterna::dist
