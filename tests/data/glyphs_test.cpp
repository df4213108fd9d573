// The drawn digits are a function of seed and index, balanced, and bright on black with a margin.
#include "data/pictures/glyphs.h"

#include <algorithm>
#include <numeric>

#include "data/error.h"
#include "data/image_set.h"
#include "tests/data/scratch_folder.h"

namespace laterna::data {
namespace {

TEST(Glyphs, AreAFunctionOfSeedAndIndex) {
  EXPECT_EQ(draw_glyph({.size = 16}, 3), draw_glyph({.size = 16, .count = 9, .split = "x"}, 3));
  EXPECT_NE(draw_glyph({.size = 16}, 3), draw_glyph({.size = 16}, 13));
  EXPECT_NE(draw_glyph({.size = 16}, 3), draw_glyph({.size = 16, .seed = 1}, 3));
}

TEST(Glyphs, AreBrightStrokesOnBlackWithAMargin) {
  for (const int size : {8, 16, 28, 64}) {
    for (std::int64_t i = 0; i < 200; ++i) {
      const auto glyph = draw_glyph({.size = size}, i);
      ASSERT_EQ(glyph.size(), static_cast<std::size_t>(size * size));
      const double ink = std::accumulate(glyph.begin(), glyph.end(), 0.0) / (255.0 * size * size);
      EXPECT_GT(*std::max_element(glyph.begin(), glyph.end()), 150) << size << " " << i;
      EXPECT_GT(ink, 0.04);
      EXPECT_LT(ink, 0.35);
      for (int side = 0; side < size; ++side) {  // no stroke touches the border
        for (const int pixel :
             {side, (size - 1) * size + side, side * size, side * size + size - 1}) {
          EXPECT_LT(glyph[static_cast<std::size_t>(pixel)], size == 8 ? 200 : 40)
              << size << " " << i;
        }
      }
    }
  }
}

TEST(Glyphs, ColouredDigitsContrastWithTheirBackground) {
  for (std::int64_t i = 0; i < 50; ++i) {
    const auto glyph = draw_glyph({.size = 28, .colour = true}, i);
    ASSERT_EQ(glyph.size(), 3U * 28 * 28);
    double contrast = 0;
    for (int c = 0; c < 3; ++c) {
      const auto plane = glyph.begin() + c * 28 * 28;
      contrast += *std::max_element(plane, plane + 28 * 28) - plane[0];
    }
    EXPECT_GT(contrast, 200);
  }
}

TEST(Glyphs, MakeABalancedDataSet) {
  const ScratchFolder folder;
  std::int64_t told = 0;
  make_glyphs({.size = 12, .colour = true, .count = 2000, .seed = 4, .split = "test"},
              folder / "glyphs", [&](std::int64_t done, std::int64_t total) {
                EXPECT_EQ(total, 2000);
                told = done;
              });
  EXPECT_EQ(told, 2000);
  const ImageSet set = ImageSet::open(folder / "glyphs");
  set.verify();
  EXPECT_EQ(set.name(), "glyphs");
  EXPECT_EQ(set.split(), "test");
  EXPECT_EQ(set.count(), 2000);
  std::vector<int> classes(10);
  for (std::int64_t i = 0; i < set.count(); ++i)
    ++classes.at(static_cast<std::size_t>(set.label(i)));
  EXPECT_EQ(classes, std::vector<int>(10, 200));
  const auto glyph = draw_glyph({.size = 12, .colour = true, .seed = 4}, 1234);
  EXPECT_TRUE(std::equal(glyph.begin(), glyph.end(), set.image(1234).begin()));
}

TEST(Glyphs, InvalidSizesAreRejectedBeforeAFolderIsCreated) {
  const ScratchFolder folder;
  for (const int size : {0, 6, 15, -8}) {
    EXPECT_THROW(make_glyphs({.size = size}, folder / "no"), std::invalid_argument);
  }
  EXPECT_THROW(make_glyphs({.count = 0}, folder / "no"), std::invalid_argument);
  EXPECT_FALSE(std::filesystem::exists(folder / "no"));
}

}  // namespace
}  // namespace laterna::data
