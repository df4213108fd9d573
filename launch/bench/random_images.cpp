#include "launch/bench/random_images.h"

#include <fmt/format.h>
#include <unistd.h>

#include <random>
#include <vector>

namespace laterna::launch {
namespace {

constexpr int kImages = 256;

}  // namespace

RandomImages::RandomImages(const Config& config)
    : folder_(std::filesystem::temp_directory_path() / fmt::format("laterna-bench-{}", getpid())) {
  const auto& m = config.model;
  const auto size = static_cast<int>(m.image_size);
  data::ImageSetWriter writer(
      folder_, {"random", "train", static_cast<int>(m.channels), size, size, /*labels=*/false});
  std::mt19937 random;
  std::vector<std::uint8_t> pixels(m.channels * m.image_size * m.image_size);
  for (int i = 0; i < kImages; ++i) {
    for (auto& pixel : pixels) pixel = static_cast<std::uint8_t>(random());
    writer.add(pixels.data());
  }
  writer.finish();
  images_ = std::make_unique<data::ImageSet>(data::ImageSet::open(folder_));
}

RandomImages::~RandomImages() {
  images_.reset();
  std::error_code none;
  std::filesystem::remove_all(folder_, none);
}

}  // namespace laterna::launch
