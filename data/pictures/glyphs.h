// The built-in data set: the digits 0 to 9 drawn as strokes. Each digit is a set of curves in a
// unit square. Drawing one bends the curves slightly, applies a small affine map, and shades every
// pixel by its distance to the curves (anti-aliased). Image i of a set is a function of (seed, i,
// size, colour) and shows the digit i % 10, so classes are balanced and any part of a set can be
// generated separately.
#pragma once

#include <cstdint>
#include <filesystem>
#include <vector>

#include "data/import/import.h"

namespace laterna::data {

struct GlyphOptions {
  int size = 28;        // pixels, even, at least 8
  bool colour = false;  // false: white on black, 1 channel; true: 3 channels
  std::int64_t count = 60000;
  std::uint64_t seed = 0;
  std::string split = "train";  // only a name: give each split another seed
};

/// Returns image `index`, uint8 [C,size,size] (C = 3 in colour, else 1). Its label is index % 10.
/// Throws std::invalid_argument for an odd size or one below 8.
std::vector<std::uint8_t> draw_glyph(const GlyphOptions& options, std::int64_t index);

/// Writes the data set to `output`, a new or empty folder. Throws WriteError; std::invalid_argument
/// as draw_glyph() does, or for a count below 1.
void make_glyphs(const GlyphOptions& options, const std::filesystem::path& output,
                 const Progress& progress = {});

}  // namespace laterna::data
