#include "dist/content_hash.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <set>
#include <vector>

namespace laterna::dist {
namespace {

TEST(ContentHash, ChangesWithEveryBitAndLength) {
  std::set<std::uint64_t> seen;
  std::size_t inputs = 0;
  for (const std::size_t length : {0, 1, 7, 8, 31, 32, 33, 64, 100}) {
    std::vector<std::byte> bytes(length);
    seen.insert(content_hash(bytes));
    ++inputs;
    for (std::size_t bit = 0; bit < 8 * length; ++bit) {
      bytes[bit / 8] ^= std::byte(1 << bit % 8);
      seen.insert(content_hash(bytes));
      bytes[bit / 8] ^= std::byte(1 << bit % 8);
      ++inputs;
    }
  }
  EXPECT_EQ(seen.size(), inputs);
}

TEST(ContentHash, ChangesWhenWordsAreSwapped) {
  std::vector<std::byte> bytes(128);
  for (std::size_t i = 0; i < bytes.size(); ++i) bytes[i] = std::byte(i);
  const std::uint64_t before = content_hash(bytes);
  for (std::size_t other = 8; other < bytes.size(); other += 8) {
    std::vector<std::byte> swapped = bytes;
    std::swap_ranges(swapped.begin(), swapped.begin() + 8, swapped.begin() + other);
    EXPECT_NE(content_hash(swapped), before);
  }
}

}  // namespace
}  // namespace laterna::dist
