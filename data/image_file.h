// Pictures in and out: PNG, JPEG and WebP are decoded to uint8 [C,H,W], PNG is written. Cropping
// and resizing are here too, since their exact definition decides what a data set's pixels are: the
// resize is the antialiased bicubic (Keys, a = -0.5, widened by the reduction), as Pillow's
// BICUBIC of float images, which FID comparisons expect.
#pragma once

#include <cstdint>
#include <filesystem>
#include <span>
#include <string>
#include <vector>

namespace laterna::data {

struct Image {
  int channels = 0;  // 1 grey, 3 RGB
  int height = 0, width = 0;
  std::vector<std::uint8_t> pixels;  // [C,H,W]
};

/// Decodes PNG, JPEG or WebP, told by the first bytes. Transparent pixels are laid on black; 16
/// bits become 8; EXIF turning is not applied. `name` is what errors call it. Throws InputError:
/// none of the three, truncated, damaged, CMYK.
Image decode_image(std::span<const std::uint8_t> bytes, const std::string& name);
/// Reads and decodes a file. Throws InputError naming it.
Image read_image(const std::filesystem::path& path);
/// Whether the name ends as a picture's does: .png, .jpg, .jpeg, .webp in any case.
bool has_image_name(const std::filesystem::path& path);

/// Grey to RGB by repeating, RGB to grey by the luma of BT.601.
Image to_channels(const Image& image, int channels);
/// The centre part (rounded up and left where it does not divide). Throws std::invalid_argument
/// when the image is smaller.
Image centre_crop(const Image& image, int height, int width);
Image resize(const Image& image, int height, int width);

/// The bytes of a PNG file. `name` is what errors call it. Throws WriteError when the size is none
/// that a PNG can have.
std::string encode_png(const Image& image, const std::string& name);
/// Throws WriteError.
void write_png(const std::filesystem::path& path, const Image& image);

/// `count` images uint8 [count,C,H,W] in rows of `columns`, two pixels of grey between them, each
/// pixel drawn `scale` times `scale` (0: such that an image is about 64 pixels high).
Image make_grid(const std::uint8_t* images, std::int64_t count, int channels, int height, int width,
                int columns, int scale = 0);
/// make_grid() as a PNG. Throws WriteError.
void write_png_grid(const std::filesystem::path& path, const std::uint8_t* images,
                    std::int64_t count, int channels, int height, int width, int columns,
                    int scale = 0);

}  // namespace laterna::data
