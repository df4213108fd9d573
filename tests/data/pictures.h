// For the tests of data/: a smooth image, and encoders for JPEG and WebP, which Laterna itself only
// reads.
#pragma once

#include <jpeglib.h>
#include <stdio.h>
#include <stdlib.h>
#include <webp/encode.h>

#include <cmath>
#include <span>
#include <string>

#include "data/pictures/image_file.h"

namespace laterna::data {

inline std::span<const std::uint8_t> bytes_of(const std::string& text) {
  return {reinterpret_cast<const std::uint8_t*>(text.data()), text.size()};
}

/// Returns a slow wave, the same in all channels except for its amplitude.
inline Image test_picture(int channels, int height, int width) {
  Image image{channels, height, width, {}};
  for (int c = 0; c < channels; ++c) {
    for (int y = 0; y < height; ++y) {
      for (int x = 0; x < width; ++x) {
        const double wave = std::sin(0.2 * x + 0.1 * y) * (100 - 20 * c);
        image.pixels.push_back(static_cast<std::uint8_t>(std::lround(128 + wave)));
      }
    }
  }
  return image;
}

/// Converts [C,H,W] to [H,W,C].
inline std::string interleaved(const Image& image) {
  std::string pixels;
  const auto plane = static_cast<std::size_t>(image.height * image.width);
  for (std::size_t i = 0; i < plane; ++i) {
    for (std::size_t c = 0; c < static_cast<std::size_t>(image.channels); ++c) {
      pixels += static_cast<char>(image.pixels[c * plane + i]);
    }
  }
  return pixels;
}

inline std::string encode_jpeg(const Image& image) {
  std::string pixels = interleaved(image);
  jpeg_compress_struct state{};
  jpeg_error_mgr errors;
  state.err = jpeg_std_error(&errors);
  jpeg_create_compress(&state);
  unsigned char* out = nullptr;
  unsigned long bytes = 0;
  jpeg_mem_dest(&state, &out, &bytes);
  state.image_width = static_cast<JDIMENSION>(image.width);
  state.image_height = static_cast<JDIMENSION>(image.height);
  state.input_components = image.channels;
  state.in_color_space = image.channels == 1 ? JCS_GRAYSCALE : JCS_RGB;
  jpeg_set_defaults(&state);
  jpeg_set_quality(&state, 95, TRUE);
  jpeg_start_compress(&state, TRUE);
  while (state.next_scanline < state.image_height) {
    auto* row = reinterpret_cast<JSAMPROW>(pixels.data()) +
                state.next_scanline * state.image_width * static_cast<unsigned>(image.channels);
    jpeg_write_scanlines(&state, &row, 1);
  }
  jpeg_finish_compress(&state);
  jpeg_destroy_compress(&state);
  std::string encoded(reinterpret_cast<char*>(out), bytes);
  free(out);
  return encoded;
}

/// `image` must have three channels.
inline std::string encode_webp(const Image& image) {
  const std::string pixels = interleaved(image);
  std::uint8_t* out = nullptr;
  const std::size_t bytes = WebPEncodeRGB(reinterpret_cast<const std::uint8_t*>(pixels.data()),
                                          image.width, image.height, 3 * image.width, 95, &out);
  std::string encoded(reinterpret_cast<char*>(out), bytes);
  WebPFree(out);
  return encoded;
}

}  // namespace laterna::data
