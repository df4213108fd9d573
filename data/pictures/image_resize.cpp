// Crop, resize, channel conversion and grids, declared in image_file.h.
//
// The resize is separable. An output pixel is a weighted mean of the input pixels around its
// position, with Keys' cubic kernel (a = -0.5, radius 2) stretched by the reduction, so that no
// input pixel is skipped. Weights are cut off at the border and normalised. Rows are resized first;
// only the final values are rounded.
#include <algorithm>
#include <cmath>
#include <stdexcept>

#include "data/pictures/image_file.h"

namespace laterna::data {
namespace {

// The input pixels that contribute to an output pixel, with their weights.
struct Taps {
  int first;
  std::vector<double> weights;
};

double cubic(double x) {
  x = std::abs(x);
  if (x < 1) return (1.5 * x - 2.5) * x * x + 1;
  if (x < 2) return ((-0.5 * x + 2.5) * x - 4) * x + 2;
  return 0;
}

std::vector<Taps> taps_for(int from, int to) {
  const double ratio = static_cast<double>(from) / to;
  const double stretch = std::max(1.0, ratio);
  std::vector<Taps> all;
  for (int out = 0; out < to; ++out) {
    const double centre = (out + 0.5) * ratio;
    const int first = std::max(0, static_cast<int>(std::floor(centre - 2 * stretch + 0.5)));
    const int end = std::min(from, static_cast<int>(std::floor(centre + 2 * stretch + 0.5)));
    Taps taps{first, {}};
    double sum = 0;
    for (int in = first; in < end; ++in) {
      taps.weights.push_back(cubic((in + 0.5 - centre) / stretch));
      sum += taps.weights.back();
    }
    for (double& weight : taps.weights) weight /= sum;
    all.push_back(std::move(taps));
  }
  return all;
}

std::uint8_t to_byte(double value) {
  return static_cast<std::uint8_t>(std::clamp(std::floor(value + 0.5), 0.0, 255.0));
}

}  // namespace

Image resize(const Image& image, int height, int width) {
  if (height < 1 || width < 1) throw std::invalid_argument("an image must have at least one pixel");
  if (height == image.height && width == image.width) return image;
  const std::vector<Taps> across = taps_for(image.width, width);
  const std::vector<Taps> down = taps_for(image.height, height);
  Image result{image.channels, height, width, {}};
  std::vector<double> narrow(static_cast<std::size_t>(image.height) *
                             static_cast<std::size_t>(width));
  for (int channel = 0; channel < image.channels; ++channel) {
    const std::uint8_t* plane =
        image.pixels.data() + std::ptrdiff_t{channel} * image.height * image.width;
    for (int row = 0; row < image.height; ++row) {
      for (int column = 0; column < width; ++column) {
        const Taps& taps = across[static_cast<std::size_t>(column)];
        const std::uint8_t* in = plane + std::ptrdiff_t{row} * image.width + taps.first;
        double sum = 0;
        for (const double weight : taps.weights) sum += weight * *in++;
        narrow[static_cast<std::size_t>(row) * static_cast<std::size_t>(width) +
               static_cast<std::size_t>(column)] = sum;
      }
    }
    for (const Taps& taps : down) {
      for (int column = 0; column < width; ++column) {
        const double* in = narrow.data() + std::ptrdiff_t{taps.first} * width + column;
        double sum = 0;
        for (const double weight : taps.weights) {
          sum += weight * *in;
          in += width;
        }
        result.pixels.push_back(to_byte(sum));
      }
    }
  }
  return result;
}

Image centre_crop(const Image& image, int height, int width) {
  if (height < 1 || width < 1 || height > image.height || width > image.width) {
    throw std::invalid_argument("the part to crop does not fit into the image");
  }
  const int top = (image.height - height) / 2, left = (image.width - width) / 2;
  Image result{image.channels, height, width, {}};
  for (int channel = 0; channel < image.channels; ++channel) {
    for (int row = 0; row < height; ++row) {
      const auto* start = image.pixels.data() +
                          (std::ptrdiff_t{channel} * image.height + top + row) * image.width + left;
      result.pixels.insert(result.pixels.end(), start, start + width);
    }
  }
  return result;
}

Image to_channels(const Image& image, int channels) {
  if (channels == image.channels) return image;
  Image result{channels, image.height, image.width, {}};
  if (channels == 3) {
    for (int copy = 0; copy < 3; ++copy) {
      result.pixels.insert(result.pixels.end(), image.pixels.begin(), image.pixels.end());
    }
    return result;
  }
  const std::size_t plane = image.pixels.size() / 3;
  for (std::size_t i = 0; i < plane; ++i) {
    const std::uint8_t* red = image.pixels.data() + i;
    result.pixels.push_back(to_byte(0.299 * red[0] + 0.587 * red[plane] + 0.114 * red[2 * plane]));
  }
  return result;
}

Image make_grid(const std::uint8_t* images, std::int64_t count, int channels, int height, int width,
                int columns, int scale) {
  constexpr int kGap = 2;
  constexpr std::uint8_t kGrey = 96;
  if (count < 1 || columns < 1) throw std::invalid_argument("a grid needs at least one image");
  if (scale < 1) scale = std::max(1, 64 / height);
  const auto rows = static_cast<int>((count + columns - 1) / columns);
  const int cell_height = height * scale + kGap, cell_width = width * scale + kGap;
  Image grid{channels, rows * cell_height + kGap, columns * cell_width + kGap, {}};
  const std::int64_t plane = std::int64_t{grid.height} * grid.width;
  grid.pixels.assign(static_cast<std::size_t>(plane * channels), kGrey);
  for (std::int64_t i = 0; i < count; ++i) {
    const std::int64_t top = kGap + i / columns * cell_height;
    const std::int64_t left = kGap + i % columns * cell_width;
    for (int channel = 0; channel < channels; ++channel) {
      const std::uint8_t* in = images + (i * channels + channel) * height * width;
      for (int y = 0; y < height * scale; ++y) {
        std::uint8_t* out = grid.pixels.data() + channel * plane + (top + y) * grid.width + left;
        for (int x = 0; x < width * scale; ++x) out[x] = in[y / scale * width + x / scale];
      }
    }
  }
  return grid;
}

void write_png_grid(const std::filesystem::path& path, const std::uint8_t* images,
                    std::int64_t count, int channels, int height, int width, int columns,
                    int scale) {
  write_png(path, make_grid(images, count, channels, height, width, columns, scale));
}

}  // namespace laterna::data
