#include "launch/pixels.h"

#include <ATen/ATen.h>

#include <numeric>
#include <vector>

namespace laterna::launch {

at::Tensor pixels_of(const data::ImageSet& set, std::span<const std::int64_t> images) {
  const auto count = static_cast<std::int64_t>(images.size());
  const at::Tensor pixels =
      at::empty({count, set.channels(), set.height(), set.width()}, at::kByte);
  auto* to = pixels.mutable_data_ptr<std::uint8_t>();
  for (const auto image : images) {
    set.read(image, to);
    to += set.image_bytes();
  }
  return pixels;
}

at::Tensor pixels_of(const data::ImageSet& set, std::int64_t first, std::int64_t count) {
  std::vector<std::int64_t> images(static_cast<std::size_t>(count));
  std::iota(images.begin(), images.end(), first);
  return pixels_of(set, images);
}

}  // namespace laterna::launch
