// What `laterna data inspect` shows of a data set: a page of text and a picture of some of its
// samples.
#pragma once

#include <filesystem>
#include <string>
#include <vector>

#include "data/image_set.h"

namespace laterna::data {

struct Description {
  std::string text;  // lines, ready to print
  std::vector<std::string>
      damaged;  // shard files whose pixels do not have their hash; empty: all well
};

/// Name, split, count, shape, classes with counts, mean and deviation of the pixels, shards with
/// the state of their checksums. Reads every pixel.
Description describe(const ImageSet& set);

/// PNG of `count` samples (or as many as there are) taken evenly from the whole set, since imported
/// sets are often sorted by class, in rows of 8. Throws WriteError.
void write_sample_picture(const ImageSet& set, const std::filesystem::path& path, int count = 64);

}  // namespace laterna::data
