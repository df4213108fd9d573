// The output of `laterna data inspect`: a description of a data set and a grid of its samples.
#pragma once

#include <filesystem>
#include <string>
#include <vector>

#include "data/image_set.h"

namespace laterna::data {

struct Description {
  std::string text;                  // lines, ready to print
  std::vector<std::string> damaged;  // shard files whose pixels do not have the recorded hash
};

/// Describes a data set: name, split, count, shape, classes with counts, mean and standard
/// deviation of the pixels, shards with the result of their checksums. Reads every pixel.
Description describe(const ImageSet& set);

/// Writes a PNG with `count` samples (or all, if fewer) in rows of 8. They are taken evenly from
/// the whole set, since imported sets are often sorted by class. Throws WriteError.
void write_sample_picture(const ImageSet& set, const std::filesystem::path& path, int count = 64);

}  // namespace laterna::data
