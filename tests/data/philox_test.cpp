// Philox against Random123's known answers, the layout of addresses, and the distributions drawn.
#include "data/philox.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <set>
#include <vector>

namespace laterna::data {
namespace {

TEST(Philox, MatchesKnownAnswersOfRandom123) {
  EXPECT_EQ(Philox::block({0, 0, 0, 0}, {0, 0}),
            (Philox::Block{0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}));
  EXPECT_EQ(Philox::block({~0U, ~0U, ~0U, ~0U}, {~0U, ~0U}),
            (Philox::Block{0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}));
  EXPECT_EQ(
      Philox::block({0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344}, {0xa4093822, 0x299f31d0}),
      (Philox::Block{0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}));
}

TEST(Philox, AddressIsLaidOutAsDocumented) {
  const std::uint64_t step = 0x00ABCDEF12345678, seed = 0x1122334455667788;
  EXPECT_EQ(random_block(seed, Stream::sampling, step, 7, 9),
            Philox::block({9, 7, 0x12345678, 0x06ABCDEF}, {0x55667788, 0x11223344}));
}

TEST(Philox, EveryPartOfTheAddressMatters) {
  std::set<Philox::Block> blocks;
  blocks.insert(random_block(1, Stream::noise, 1, 1, 1));
  blocks.insert(random_block(2, Stream::noise, 1, 1, 1));
  blocks.insert(random_block(1ULL << 40, Stream::noise, 1, 1, 1));
  blocks.insert(random_block(1, Stream::timestep, 1, 1, 1));
  blocks.insert(random_block(1, Stream::noise, 2, 1, 1));
  blocks.insert(random_block(1, Stream::noise, 1ULL << 33, 1, 1));
  blocks.insert(random_block(1, Stream::noise, 1, 2, 1));
  blocks.insert(random_block(1, Stream::noise, 1, 1, 2));
  EXPECT_EQ(blocks.size(), 8U);
}

TEST(Philox, NormalNumbersHaveMomentsOfTheNormalDistribution) {
  std::vector<double> x(400001);
  fill_normal(x.data(), x.size(), 5, Stream::noise, 3, 2);
  double mean = 0, variance = 0, fourth = 0;
  for (const double v : x) {
    mean += v;
    variance += v * v;
    fourth += v * v * v * v;
  }
  const auto n = static_cast<double>(x.size());
  EXPECT_NEAR(mean / n, 0, 0.01);
  EXPECT_NEAR(variance / n, 1, 0.01);
  EXPECT_NEAR(fourth / n, 3, 0.1);
}

TEST(Philox, NormalTransformIsTheDocumentedOne) {
  double x[3];
  fill_normal(x, 3, 0, Stream::noise, 0, 0);
  // Words of the first known answer: 0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8.
  const double u0 = (0x6627e8d5 + 0.5) / 4294967296.0, u1 = (0xe169c58d + 0.5) / 4294967296.0;
  const double u2 = (0xbc57ac4c + 0.5) / 4294967296.0, u3 = (0x9b00dbd8 + 0.5) / 4294967296.0;
  const double pi = 3.14159265358979323846;
  EXPECT_DOUBLE_EQ(x[0], std::sqrt(-2 * std::log(u0)) * std::cos(2 * pi * u1));
  EXPECT_DOUBLE_EQ(x[1], std::sqrt(-2 * std::log(u0)) * std::sin(2 * pi * u1));
  EXPECT_DOUBLE_EQ(x[2], std::sqrt(-2 * std::log(u2)) * std::cos(2 * pi * u3));
}

TEST(Philox, FloatsAreRoundedDoublesForAnyLength) {
  std::vector<double> wide(11);
  std::vector<float> narrow(7);
  fill_normal(wide.data(), wide.size(), 9, Stream::sampling, 999, 4);
  fill_normal(narrow.data(), narrow.size(), 9, Stream::sampling, 999, 4);
  for (std::size_t i = 0; i < narrow.size(); ++i) {
    EXPECT_EQ(narrow[i], static_cast<float>(wide[i]));
  }
}

TEST(Philox, UniformStaysInsideTheInterval) {
  EXPECT_GT(to_uniform(0), 0);
  EXPECT_LT(to_uniform(~0U), 1);
  std::vector<double> u(5);
  fill_uniform(u.data(), u.size(), 1, Stream::timestep, 2, 3);
  EXPECT_EQ(u[4], to_uniform(random_block(1, Stream::timestep, 2, 3, 1)[0]));
}

TEST(Philox, RandomBelowCoversItsRangeEvenly) {
  std::vector<int> counts(1000);
  for (std::uint32_t i = 0; i < 200000; ++i) {
    ++counts.at(random_below(1000, 7, Stream::timestep, i / 128, i % 128));
  }
  EXPECT_GT(*std::min_element(counts.begin(), counts.end()), 120);
  EXPECT_LT(*std::max_element(counts.begin(), counts.end()), 280);
}

TEST(RandomSequence, DrawsTheWordsOfItsAddressInOrder) {
  RandomSequence sequence(3, Stream::glyphs, 4, 5);
  for (std::uint32_t i = 0; i < 9; ++i) {
    EXPECT_EQ(sequence.word(), random_block(3, Stream::glyphs, 4, 5, i / 4)[i % 4]);
  }
  for (int i = 0; i < 1000; ++i) EXPECT_LT(sequence.below(3), 3U);
}

}  // namespace
}  // namespace laterna::data
