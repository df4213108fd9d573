// A quick 64-bit hash of bytes, for comparing what ranks hold: not for files (those have SHA-256)
// and not against malice. Four independent lanes of eight bytes each keep up with memory.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

namespace laterna::dist {

/// The same bytes give the same hash on every little-endian machine. Every single-bit difference in
/// equally long input changes it; others go unnoticed with probability 2^-64.
std::uint64_t content_hash(std::span<const std::byte> bytes);

}  // namespace laterna::dist
