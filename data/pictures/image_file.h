// Image files: PNG, JPEG and WebP are decoded to uint8 [C,H,W], PNG is written. Cropping and
// resizing are here too, since their exact definition determines the pixels of a data set. The
// resize is antialiased bicubic (Keys' kernel, a = -0.5, widened by the reduction) and equals
// Pillow's BICUBIC on float images, which FID comparisons expect.
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

/// Decodes PNG, JPEG or WebP, recognised by the first bytes. Transparency is composed onto black;
/// 16 bits become 8; EXIF rotation is not applied. `name` identifies the image in errors. Throws
/// InputError when the image has none of the three formats, is truncated, damaged or CMYK.
Image decode_image(std::span<const std::uint8_t> bytes, const std::string& name);
/// Reads and decodes a file. Throws InputError naming the file.
Image read_image(const std::filesystem::path& path);
/// Returns whether the name ends in .png, .jpg, .jpeg or .webp, in upper or lower case.
bool has_image_name(const std::filesystem::path& path);

/// Converts grey to RGB by repetition, RGB to grey by the luma of BT.601.
Image to_channels(const Image& image, int channels);
/// Returns the centre part; where the margins cannot be equal, those above and on the left are
/// one pixel smaller. Throws std::invalid_argument when the image is smaller than the part.
Image centre_crop(const Image& image, int height, int width);
/// Resizes as described at the top. Throws std::invalid_argument for a height or width below 1.
Image resize(const Image& image, int height, int width);

/// Returns the bytes of a PNG file. `name` identifies the image in errors. Throws WriteError when
/// PNG does not allow the size.
std::string encode_png(const Image& image, const std::string& name);
/// Writes a PNG file durably. Throws WriteError.
void write_png(const std::filesystem::path& path, const Image& image);

/// Arranges `count` images, uint8 [count,C,H,W], in rows of `columns` with two grey pixels between
/// them. Each pixel is drawn as `scale` x `scale` pixels (0: such that an image is about 64 pixels
/// high).
Image make_grid(const std::uint8_t* images, std::int64_t count, int channels, int height, int width,
                int columns, int scale = 0);
/// Writes the result of make_grid() as a PNG file. Throws WriteError.
void write_png_grid(const std::filesystem::path& path, const std::uint8_t* images,
                    std::int64_t count, int channels, int height, int width, int columns,
                    int scale = 0);

}  // namespace laterna::data
