// Digits as polylines in a unit square (y grows downwards), jittered and painted by distance.
//
// A digit is one or two strokes. Arcs are cut into short segments first, so that painting needs a
// single operation: the smallest distance from a pixel's centre to a segment. The jitter has two
// parts: an affine map (rotation, slant, scale, shift) moves the whole digit, and a smooth bend
// (two sine waves over the plane) shifts each point as a function of its position, so that strokes
// that meet still meet.
#include "data/pictures/glyphs.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <numbers>
#include <stdexcept>

#include "data/image_set.h"
#include "data/philox.h"

namespace laterna::data {
namespace {

struct Point {
  double x, y;
};
using Polyline = std::vector<Point>;

constexpr double kPi = std::numbers::pi;

// Appends an arc of an ellipse from angle `from` to angle `to`, in degrees, clockwise on the screen
// (0: right, 90: below, 180: left, 270: above).
void arc(Polyline& line, Point centre, double radius_x, double radius_y, double from, double to) {
  constexpr int kSegments = 14;
  for (int i = 0; i <= kSegments; ++i) {
    const double angle = (from + (to - from) * i / kSegments) * kPi / 180;
    line.push_back({centre.x + radius_x * std::cos(angle), centre.y + radius_y * std::sin(angle)});
  }
}

// The strokes of a digit, which fill about x 0.2..0.8, y 0..1.
std::vector<Polyline> strokes_of(int digit) {
  Polyline line, second;
  switch (digit) {
    case 0:
      arc(line, {0.5, 0.5}, 0.3, 0.5, -90, 270);
      break;
    case 1:
      line = {{0.32, 0.2}, {0.53, 0.0}, {0.53, 1.0}};
      break;
    case 2:
      arc(line, {0.5, 0.29}, 0.29, 0.29, 190, 390);
      line.insert(line.end(), {{0.2, 1.0}, {0.82, 1.0}});
      break;
    case 3:
      arc(line, {0.47, 0.25}, 0.28, 0.25, 205, 445);
      arc(second, {0.47, 0.74}, 0.31, 0.26, -82, 155);
      break;
    case 4:
      line = {{0.62, 0.0}, {0.16, 0.66}, {0.86, 0.66}};
      second = {{0.65, 0.36}, {0.65, 1.0}};
      break;
    case 5:
      line = {{0.76, 0.0}, {0.3, 0.0}, {0.26, 0.46}};
      arc(line, {0.47, 0.68}, 0.31, 0.32, 228, 505);
      break;
    case 6:
      line = {{0.66, 0.0}};
      arc(line, {0.72, 0.7}, 0.5, 0.62, 245, 185);
      arc(line, {0.5, 0.69}, 0.29, 0.31, 180, 540);
      break;
    case 7:
      line = {{0.2, 0.0}, {0.8, 0.0}, {0.42, 1.0}};
      break;
    case 8:
      arc(line, {0.5, 0.24}, 0.24, 0.24, -90, 270);
      arc(second, {0.5, 0.74}, 0.3, 0.26, -90, 270);
      break;
    default:
      arc(line, {0.5, 0.31}, 0.29, 0.31, 0, 360);
      line.insert(line.end(), {{0.76, 0.6}, {0.62, 1.0}});
  }
  if (second.empty()) return {line};
  return {line, second};
}

// A random smooth map of the unit square to pixels.
class Jitter {
 public:
  Jitter(RandomSequence& random, int size) : size_(size) {
    const double turn = random.uniform(-0.12, 0.12), slant = random.uniform(-0.1, 0.25);
    const double height = random.uniform(0.62, 0.74), width = random.uniform(0.58, 0.74);
    const double c = std::cos(turn), s = std::sin(turn);
    // rotation * slant * scale, for points relative to the centre of the square
    matrix_ = {c * width, -s * height - c * slant * height, s * width,
               c * height - s * slant * height};
    shift_ = {random.uniform(-0.045, 0.045), random.uniform(-0.045, 0.045)};
    for (Wave& wave : waves_) {
      const double direction = random.uniform(0, 2 * kPi), rate = random.uniform(2.5, 5.0);
      wave = {{rate * std::cos(direction), rate * std::sin(direction)},
              random.uniform(0, 2 * kPi),
              {random.uniform(-0.03, 0.03), random.uniform(-0.03, 0.03)}};
    }
  }

  Point operator()(Point p) const {
    Point bent = {p.x - 0.5, p.y - 0.5};
    for (const Wave& wave : waves_) {
      const double amount = std::sin(wave.rate.x * p.x + wave.rate.y * p.y + wave.phase);
      bent.x += wave.reach.x * amount;
      bent.y += wave.reach.y * amount;
    }
    return {size_ * (0.5 + shift_.x + matrix_[0] * bent.x + matrix_[1] * bent.y),
            size_ * (0.5 + shift_.y + matrix_[2] * bent.x + matrix_[3] * bent.y)};
  }

 private:
  struct Wave {
    Point rate;
    double phase;
    Point reach;
  };
  double size_;
  std::array<double, 4> matrix_;
  Point shift_;
  std::array<Wave, 2> waves_;
};

// Shifts the strokes so that they keep `margin` pixels away from the border. Strokes too large for
// that are centred.
void keep_inside(std::vector<Polyline>& strokes, int size, double margin) {
  for (double Point::*axis : {&Point::x, &Point::y}) {
    double low = size, high = 0;
    for (const Polyline& line : strokes) {
      for (const Point& point : line) {
        low = std::min(low, point.*axis);
        high = std::max(high, point.*axis);
      }
    }
    const double least = margin - low, most = size - margin - high;
    const double move = least < most ? std::clamp(0.0, least, most) : (least + most) / 2;
    for (Polyline& line : strokes) {
      for (Point& point : line) point.*axis += move;
    }
  }
}

double squared_distance(Point p, Point a, Point b) {
  const double dx = b.x - a.x, dy = b.y - a.y;
  const double length = dx * dx + dy * dy;
  const double along =
      length > 0 ? std::clamp(((p.x - a.x) * dx + (p.y - a.y) * dy) / length, 0.0, 1.0) : 0.0;
  const double x = p.x - a.x - along * dx, y = p.y - a.y - along * dy;
  return x * x + y * y;
}

// Returns the share of each pixel that is ink, 0..1, [size,size].
std::vector<double> paint(const std::vector<Polyline>& strokes, int size, double half_width) {
  std::vector<double> ink;
  for (int row = 0; row < size; ++row) {
    for (int column = 0; column < size; ++column) {
      const Point pixel = {column + 0.5, row + 0.5};
      double nearest = std::numeric_limits<double>::infinity();
      for (const Polyline& line : strokes) {
        for (std::size_t i = 1; i < line.size(); ++i) {
          nearest = std::min(nearest, squared_distance(pixel, line[i - 1], line[i]));
        }
      }
      // A linear edge one pixel wide approximates the share of the pixel that the stroke covers.
      ink.push_back(std::clamp(half_width + 0.5 - std::sqrt(nearest), 0.0, 1.0));
    }
  }
  return ink;
}

struct Palette {
  std::array<double, 3> ground, stroke;  // 0..255
};

// A dark background and a bright stroke, each of random hue.
Palette random_palette(RandomSequence& random) {
  Palette palette;
  const auto colour = [&random](double low, double high) {
    std::array<double, 3> rgb;
    const double hue = random.uniform(0, 2 * kPi);
    for (int c = 0; c < 3; ++c) {
      rgb[static_cast<std::size_t>(c)] =
          low + (high - low) * (0.5 + 0.5 * std::cos(hue + c * 2 * kPi / 3));
    }
    return rgb;
  };
  palette.ground = colour(0, 90);
  palette.stroke = colour(150, 255);
  return palette;
}

}  // namespace

std::vector<std::uint8_t> draw_glyph(const GlyphOptions& options, std::int64_t index) {
  const int size = options.size;
  if (size < 8 || size % 2 != 0) {
    throw std::invalid_argument("the size of a glyph must be even and at least 8");
  }
  RandomSequence random(options.seed, Stream::glyphs, static_cast<std::uint64_t>(index), 0);
  const Jitter jitter(random, size);
  const double half_width = std::max(0.6, size * random.uniform(0.043, 0.056));
  std::vector<Polyline> strokes = strokes_of(static_cast<int>(index % 10));
  for (Polyline& line : strokes) std::transform(line.begin(), line.end(), line.begin(), jitter);
  keep_inside(strokes, size, half_width + 1);
  const std::vector<double> ink = paint(strokes, size, half_width);
  const Palette palette =
      options.colour ? random_palette(random) : Palette{{0, 0, 0}, {255, 255, 255}};
  std::vector<std::uint8_t> pixels;
  for (std::size_t channel = 0; channel < (options.colour ? 3U : 1U); ++channel) {
    const double ground = palette.ground[channel], stroke = palette.stroke[channel];
    for (const double share : ink) {
      pixels.push_back(static_cast<std::uint8_t>(std::lround(ground + share * (stroke - ground))));
    }
  }
  return pixels;
}

void make_glyphs(const GlyphOptions& options, const std::filesystem::path& output,
                 const Progress& progress) {
  draw_glyph(options, 0);  // rejects an invalid size before the folder is created
  if (options.count < 1) throw std::invalid_argument("a data set must have at least one glyph");
  ImageSetWriter writer(output, {.name = "glyphs",
                                 .split = options.split,
                                 .channels = options.colour ? 3 : 1,
                                 .height = options.size,
                                 .width = options.size});
  for (std::int64_t i = 0; i < options.count; ++i) {
    writer.add(draw_glyph(options, i).data(), static_cast<std::int32_t>(i % 10));
    if (progress && (i + 1) % 1000 == 0) progress(i + 1, options.count);
  }
  writer.finish();
  if (progress) progress(options.count, options.count);
}

}  // namespace laterna::data
