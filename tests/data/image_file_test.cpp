// Image files: decoding, damaged and foreign files, writing PNG, crop, resize, grids.
#include "data/pictures/image_file.h"

#include <algorithm>
#include <cmath>

#include "data/error.h"
#include "tests/data/pictures.h"
#include "tests/data/scratch_folder.h"

namespace laterna::data {
namespace {

double mean_difference(const Image& a, const Image& b) {
  EXPECT_EQ(a.pixels.size(), b.pixels.size());
  double sum = 0;
  for (std::size_t i = 0; i < a.pixels.size(); ++i) sum += std::abs(a.pixels[i] - b.pixels[i]);
  return sum / static_cast<double>(a.pixels.size());
}

TEST(ImageFile, PngRoundTripIsExact) {
  const ScratchFolder folder;
  for (const int channels : {1, 3}) {
    const Image image = test_picture(channels, 9, 13);
    write_png(folder / "x.png", image);
    const Image read = read_image(folder / "x.png");
    EXPECT_EQ(read.channels, channels);
    EXPECT_EQ(read.height, 9);
    EXPECT_EQ(read.width, 13);
    EXPECT_EQ(read.pixels, image.pixels);
  }
}

TEST(ImageFile, JpegAndWebpDecodeApproximately) {
  for (const int channels : {1, 3}) {
    const Image image = test_picture(channels, 32, 24);
    const Image read = decode_image(bytes_of(encode_jpeg(image)), "x.jpg");
    EXPECT_EQ(read.channels, channels);
    EXPECT_EQ(read.height, 32);
    EXPECT_EQ(read.width, 24);
    EXPECT_LT(mean_difference(image, read), 4);
  }
  const Image image = test_picture(3, 32, 24);
  EXPECT_LT(mean_difference(image, decode_image(bytes_of(encode_webp(image)), "x")), 4);
}

TEST(ImageFile, TruncatedImagesAreNamed) {
  const ScratchFolder folder;
  const Image image = test_picture(3, 64, 64);
  write_png(folder / "x.png", image);
  const std::string png = get(folder / "x.png"), jpeg = encode_jpeg(image),
                    webp = encode_webp(image);
  for (const double share : {0.03, 0.5, 0.9}) {
    const auto cut = [share](const std::string& bytes) {
      return bytes.substr(0, static_cast<std::size_t>(share * static_cast<double>(bytes.size())));
    };
    put(folder / "cut.png", cut(png));
    expect_error<InputError>([&] { read_image(folder / "cut.png"); }, {"cut.png", "truncated PNG"});
    put(folder / "cut.jpg", cut(jpeg));
    expect_error<InputError>([&] { read_image(folder / "cut.jpg"); },
                             {"cut.jpg", "truncated JPEG"});
    put(folder / "cut.webp", cut(webp));
    expect_error<InputError>([&] { read_image(folder / "cut.webp"); }, {"cut.webp", "WebP"});
  }
}

TEST(ImageFile, MissingForeignAndEmptyFilesAreNamed) {
  const ScratchFolder folder;
  expect_error<InputError>([&] { read_image(folder / "none.png"); }, {"none.png", "No such file"});
  put(folder / "text.png", "not a picture");
  expect_error<InputError>([&] { read_image(folder / "text.png"); },
                           {"text.png", "not a PNG, JPEG or WebP"});
  put(folder / "empty.jpg", "");
  expect_error<InputError>([&] { read_image(folder / "empty.jpg"); }, {"empty.jpg", "empty"});
  put(folder / "damaged.jpg", "\xff\xd8\xff and then nonsense");
  expect_error<InputError>([&] { read_image(folder / "damaged.jpg"); }, {"damaged.jpg", "JPEG"});
}

TEST(ImageFile, FullDiskAndUnwritableFolderAreNamed) {
  const ScratchFolder folder;
  const Image image = test_picture(1, 8, 8);
  make_full(folder / "x.png.part");
  expect_error<WriteError>([&] { write_png(folder / "x.png", image); },
                           {"x.png", "No space left on device"});
  put(folder / "file", "");
  expect_error<WriteError>([&] { write_png(folder / "file/x.png", image); }, {"file/x.png"});
}

TEST(ImageFile, RecognisesNamesOfImages) {
  for (const char* name : {"a.png", "b.JPG", "c.jpeg", "d.webp"}) EXPECT_TRUE(has_image_name(name));
  for (const char* name : {"a.txt", "png", ".png.part"}) EXPECT_FALSE(has_image_name(name));
}

TEST(Resize, KeepsFlatImagesFlatAndEqualSizesUnchanged) {
  const Image flat{1, 7, 5, std::vector<std::uint8_t>(35, 77)};
  for (const auto& [height, width] : {std::pair{3, 4}, {14, 2}, {1, 1}, {20, 30}}) {
    const Image out = resize(flat, height, width);
    EXPECT_EQ(out.pixels, std::vector<std::uint8_t>(static_cast<std::size_t>(height * width), 77));
  }
  const Image image = test_picture(3, 6, 6);
  EXPECT_EQ(resize(image, 6, 6).pixels, image.pixels);
}

TEST(Resize, MatchesPillow) {
  // Expected values: Pillow's in float mode, rounded (its 8-bit mode rounds and clips between the
  // two passes): Image.fromarray(ramp).resize((w, h), Image.BICUBIC), ramp[y][x] = (37 x + 59 y) %
  // 256, 8 x 6.
  Image ramp{1, 6, 8, {}};
  for (int y = 0; y < 6; ++y) {
    for (int x = 0; x < 8; ++x)
      ramp.pixels.push_back(static_cast<std::uint8_t>((37 * x + 59 * y) % 256));
  }
  const std::vector<int> small = {54, 131, 179, 87, 168, 157, 79, 134, 102, 99, 161, 135};
  const std::vector<int> large = {
      0,  20, 52,  81,  111, 140, 169, 225, 173, 0,   23, 48,  80,  109, 140, 183, 224, 184,
      91, 23, 67,  93,  124, 156, 184, 184, 228, 121, 20, 74,  107, 132, 163, 205, 223, 43,
      52, 69, 83,  113, 145, 183, 229, 216, 119, 28,  44, 87,  128, 152, 190, 189, 224, 179,
      22, 73, 105, 136, 169, 194, 250, 92,  44,  77,  81, 114, 143, 181, 221, 246, 139, 62,
      46, 89, 130, 159, 199, 150, 105, 140, 24,  62,  99, 128, 158, 187, 237, 110, 0,   31};
  const auto compare = [](const Image& ours, const std::vector<int>& theirs) {
    ASSERT_EQ(ours.pixels.size(), theirs.size());
    for (std::size_t i = 0; i < theirs.size(); ++i) EXPECT_EQ(ours.pixels[i], theirs[i]) << i;
  };
  compare(resize(ramp, 3, 4), small);
  compare(resize(ramp, 9, 10), large);
}

TEST(Resize, CropTakesTheMiddle) {
  const Image image{1, 3, 4, {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11}};
  EXPECT_EQ(centre_crop(image, 1, 2).pixels, (std::vector<std::uint8_t>{5, 6}));
  EXPECT_EQ(centre_crop(image, 3, 3).pixels,
            (std::vector<std::uint8_t>{0, 1, 2, 4, 5, 6, 8, 9, 10}));
  EXPECT_THROW(centre_crop(image, 4, 4), std::invalid_argument);
}

TEST(Resize, ChannelsAreConverted) {
  const Image red{3, 1, 1, {255, 0, 0}};
  EXPECT_EQ(to_channels(red, 1).pixels, std::vector<std::uint8_t>{76});
  EXPECT_EQ(to_channels({1, 1, 2, {3, 4}}, 3).pixels,
            (std::vector<std::uint8_t>{3, 4, 3, 4, 3, 4}));
}

TEST(Grid, PlacesImagesWithGapsAndScales) {
  const std::vector<std::uint8_t> images = {10, 20, 30};  // three images of one pixel
  const Image grid = make_grid(images.data(), 3, 1, 1, 1, 2, 3);
  EXPECT_EQ(grid.height, 2 * 5 + 2);
  EXPECT_EQ(grid.width, 2 * 5 + 2);
  const auto at = [&](int y, int x) { return grid.pixels[static_cast<std::size_t>(y * 12 + x)]; };
  EXPECT_EQ(at(2, 2), 10);
  EXPECT_EQ(at(4, 4), 10);
  EXPECT_EQ(at(4, 5), 96);
  EXPECT_EQ(at(3, 8), 20);
  EXPECT_EQ(at(7, 3), 30);
  EXPECT_EQ(at(7, 8), 96);  // no fourth image
  EXPECT_EQ(make_grid(images.data(), 1, 1, 1, 1, 8).height, 64 + 4);
  EXPECT_EQ(make_grid(images.data(), 1, 3, 1, 1, 8, 1).channels, 3);
}

}  // namespace
}  // namespace laterna::data
