// One pass over the pixels for their statistics, one over the shards for the checksums.
#include "data/inspect.h"

#include <fmt/core.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <map>

#include "data/pictures/image_file.h"

namespace laterna::data {
namespace {

struct PixelStatistics {
  double mean, deviation;
};

// Exact, from a histogram of the 256 values.
PixelStatistics pixel_statistics(const ImageSet& set) {
  std::array<std::int64_t, 256> histogram{};
  std::vector<std::uint8_t> image(static_cast<std::size_t>(set.image_bytes()));
  for (std::int64_t i = 0; i < set.count(); ++i) {
    set.read(i, image.data());
    for (const std::uint8_t pixel : image) ++histogram[pixel];
  }
  const auto total = static_cast<double>(set.count() * set.image_bytes());
  double sum = 0, squares = 0;
  for (std::size_t value = 0; value < histogram.size(); ++value) {
    const double weight = static_cast<double>(histogram[value]) / total;
    sum += weight * static_cast<double>(value);
    squares += weight * static_cast<double>(value * value);
  }
  return {sum, std::sqrt(std::max(0.0, squares - sum * sum))};
}

std::string classes_line(const ImageSet& set) {
  if (!set.has_labels()) return "none (no labels)";
  std::map<std::int32_t, std::int64_t> counts;
  for (std::int64_t i = 0; i < set.count(); ++i) ++counts[set.label(i)];
  constexpr std::size_t kShown = 20;
  std::string line = fmt::format("{}:", counts.size());
  std::size_t shown = 0;
  for (const auto& [label, count] : counts) {
    if (shown++ == kShown) return line + " ...";
    line += fmt::format("  {} ({})", label, count);
  }
  return line;
}

}  // namespace

Description describe(const ImageSet& set) {
  Description description;
  const PixelStatistics pixels = pixel_statistics(set);
  std::string& text = description.text;
  text += fmt::format("data set   {}, split {}\n", set.name(), set.split());
  text += fmt::format("images     {} of {}x{}x{} (channels, height, width), uint8\n", set.count(),
                      set.channels(), set.height(), set.width());
  text += fmt::format("classes    {}\n", classes_line(set));
  text += fmt::format("pixels     mean {:.2f}, deviation {:.2f} (0..255)\n", pixels.mean,
                      pixels.deviation);
  text += fmt::format("sha256     {}\n", set.sha256());
  for (std::size_t i = 0; i < set.shards().size(); ++i) {
    const ShardInfo& shard = set.shards()[i];
    const bool intact = set.shard_is_intact(i);
    if (!intact) description.damaged.push_back((set.folder() / shard.file).string());
    text += fmt::format("shard      {}  {} images  {}\n", shard.file, shard.count,
                        intact ? "checksum verified" : "DAMAGED: checksum differs");
  }
  return description;
}

void write_sample_picture(const ImageSet& set, const std::filesystem::path& path, int count) {
  const std::int64_t shown = std::min<std::int64_t>(count, set.count());
  std::vector<std::uint8_t> images(static_cast<std::size_t>(shown * set.image_bytes()));
  for (std::int64_t i = 0; i < shown; ++i) {
    set.read(i * set.count() / shown, images.data() + i * set.image_bytes());
  }
  write_png_grid(path, images.data(), shown, set.channels(), set.height(), set.width(), 8);
}

}  // namespace laterna::data
