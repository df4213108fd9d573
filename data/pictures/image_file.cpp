// PNG by libpng's simplified interface, JPEG by libjpeg, WebP by libwebp. All decode from memory,
// so that files, LMDB values and test data take the same path.
#include "data/pictures/image_file.h"

#include <fmt/core.h>
#include <jpeglib.h>
#include <png.h>
#include <webp/decode.h>

// jerror.h needs jpeglib.h before it.
#include <jerror.h>

#include <algorithm>
#include <cerrno>
#include <csetjmp>
#include <cstring>
#include <fstream>
#include <memory>

#include "data/error.h"
#include "data/files/durable_file.h"

namespace laterna::data {
namespace {

[[noreturn]] void fail(const std::string& name, const std::string& what) {
  throw InputError(fmt::format("{}: {}", name, what));
}

// [H,W,C] to [C,H,W].
Image from_interleaved(const std::uint8_t* pixels, int channels, int height, int width) {
  Image image{channels, height, width, {}};
  const std::size_t plane = static_cast<std::size_t>(height) * static_cast<std::size_t>(width);
  image.pixels.resize(plane * static_cast<std::size_t>(channels));
  for (std::size_t c = 0; c < static_cast<std::size_t>(channels); ++c) {
    for (std::size_t i = 0; i < plane; ++i) {
      image.pixels[c * plane + i] = pixels[i * static_cast<std::size_t>(channels) + c];
    }
  }
  return image;
}

Image decode_png(std::span<const std::uint8_t> bytes, const std::string& name) {
  png_image png{};
  png.version = PNG_IMAGE_VERSION;
  const std::unique_ptr<png_image, void (*)(png_image*)> owner(&png, png_image_free);
  if (png_image_begin_read_from_memory(&png, bytes.data(), bytes.size()) == 0) {
    fail(name, fmt::format("damaged or truncated PNG ({})", png.message));
  }
  png.flags |=
      PNG_IMAGE_FLAG_16BIT_sRGB;  // else 16-bit samples without gamma are taken as linear light
  const bool colour = (png.format & PNG_FORMAT_FLAG_COLOR) != 0;
  png.format = colour ? PNG_FORMAT_RGB : PNG_FORMAT_GRAY;
  std::vector<std::uint8_t> pixels(PNG_IMAGE_SIZE(png));
  const png_color black{};
  if (png_image_finish_read(&png, &black, pixels.data(), 0, nullptr) == 0) {
    fail(name, fmt::format("damaged or truncated PNG ({})", png.message));
  }
  return from_interleaved(pixels.data(), colour ? 3 : 1, static_cast<int>(png.height),
                          static_cast<int>(png.width));
}

// libjpeg leaves a failing call by a jump. It only warns when a file ends early and fills the rest
// of the image with grey; here a truncated file is an error.
struct JpegErrors {
  jpeg_error_mgr manager;
  std::jmp_buf jump;
  char message[JMSG_LENGTH_MAX];
  bool truncated;
};

void jpeg_error_exit(j_common_ptr state) {
  auto* errors = reinterpret_cast<JpegErrors*>(state->err);
  state->err->format_message(state, errors->message);
  std::longjmp(errors->jump, 1);
}

void jpeg_note_message(j_common_ptr state, int level) {
  if (level < 0 && state->err->msg_code == JWRN_JPEG_EOF) {
    reinterpret_cast<JpegErrors*>(state->err)->truncated = true;
  }
}

// Returns false on failure, with errors.message set. It must not hold objects with destructors:
// longjmp() would skip them.
bool decompress_jpeg(std::span<const std::uint8_t> bytes, jpeg_decompress_struct& state,
                     JpegErrors& errors, std::vector<std::uint8_t>& pixels) {
  if (setjmp(errors.jump) != 0) return false;
  jpeg_create_decompress(&state);
  jpeg_mem_src(&state, bytes.data(), bytes.size());
  jpeg_read_header(&state, TRUE);
  state.out_color_space = state.num_components == 1 ? JCS_GRAYSCALE : JCS_RGB;
  state.dct_method = JDCT_ISLOW;
  jpeg_start_decompress(&state);
  const std::size_t row =
      std::size_t{state.output_width} * static_cast<std::size_t>(state.output_components);
  pixels.resize(row * state.output_height);
  while (state.output_scanline < state.output_height) {
    JSAMPROW line = pixels.data() + row * state.output_scanline;
    jpeg_read_scanlines(&state, &line, 1);
  }
  jpeg_finish_decompress(&state);
  return true;
}

Image decode_jpeg(std::span<const std::uint8_t> bytes, const std::string& name) {
  JpegErrors errors{};
  jpeg_decompress_struct state{};
  state.err = jpeg_std_error(&errors.manager);
  errors.manager.error_exit = jpeg_error_exit;
  errors.manager.emit_message = jpeg_note_message;
  std::vector<std::uint8_t> pixels;
  const bool decoded = decompress_jpeg(bytes, state, errors, pixels);
  const int channels = state.output_components, height = static_cast<int>(state.output_height),
            width = static_cast<int>(state.output_width);
  jpeg_destroy_decompress(&state);
  if (!decoded) fail(name, fmt::format("damaged or truncated JPEG ({})", errors.message));
  if (errors.truncated) fail(name, "truncated JPEG: the file ends before the image is complete");
  return from_interleaved(pixels.data(), channels, height, width);
}

Image decode_webp(std::span<const std::uint8_t> bytes, const std::string& name) {
  int width = 0, height = 0;
  const std::unique_ptr<std::uint8_t, void (*)(void*)> pixels(
      WebPDecodeRGB(bytes.data(), bytes.size(), &width, &height), WebPFree);
  if (!pixels) fail(name, "damaged or truncated WebP");
  return from_interleaved(pixels.get(), 3, height, width);
}

bool starts_with(std::span<const std::uint8_t> bytes, std::size_t at, std::string_view mark) {
  return bytes.size() >= at + mark.size() &&
         std::memcmp(bytes.data() + at, mark.data(), mark.size()) == 0;
}

}  // namespace

Image decode_image(std::span<const std::uint8_t> bytes, const std::string& name) {
  if (starts_with(bytes, 0, "\x89PNG\r\n\x1a\n")) return decode_png(bytes, name);
  if (starts_with(bytes, 0, "\xff\xd8\xff")) return decode_jpeg(bytes, name);
  if (starts_with(bytes, 0, "RIFF") && starts_with(bytes, 8, "WEBP")) {
    return decode_webp(bytes, name);
  }
  fail(name, bytes.empty() ? "empty: not an image" : "not a PNG, JPEG or WebP image");
}

Image read_image(const std::filesystem::path& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) fail(path.string(), fmt::format("cannot be read: {}", std::strerror(errno)));
  const std::vector<char> bytes{std::istreambuf_iterator<char>(file), {}};
  return decode_image({reinterpret_cast<const std::uint8_t*>(bytes.data()), bytes.size()},
                      path.string());
}

bool has_image_name(const std::filesystem::path& path) {
  std::string ending = path.extension().string();
  std::transform(ending.begin(), ending.end(), ending.begin(),
                 [](unsigned char c) { return static_cast<char>(std::tolower(c)); });
  return ending == ".png" || ending == ".jpg" || ending == ".jpeg" || ending == ".webp";
}

std::string encode_png(const Image& image, const std::string& name) {
  const std::size_t plane =
      static_cast<std::size_t>(image.height) * static_cast<std::size_t>(image.width);
  const auto channels = static_cast<std::size_t>(image.channels);
  std::vector<std::uint8_t> pixels(plane * channels);
  for (std::size_t i = 0; i < plane; ++i) {
    for (std::size_t c = 0; c < channels; ++c) {
      pixels[i * channels + c] = image.pixels[c * plane + i];
    }
  }
  png_image png{};
  png.version = PNG_IMAGE_VERSION;
  png.width = static_cast<png_uint_32>(image.width);
  png.height = static_cast<png_uint_32>(image.height);
  png.format = channels == 1 ? PNG_FORMAT_GRAY : PNG_FORMAT_RGB;
  png_alloc_size_t bytes = PNG_IMAGE_PNG_SIZE_MAX(png);
  std::string encoded(bytes, '\0');
  if (png_image_write_to_memory(&png, encoded.data(), &bytes, 0, pixels.data(), 0, nullptr) == 0) {
    throw WriteError(fmt::format("{}: cannot be encoded: {}", name, png.message));
  }
  encoded.resize(bytes);
  return encoded;
}

// Encodes in memory first, because libpng's function that writes files deletes the file it was
// given when it fails.
void write_png(const std::filesystem::path& path, const Image& image) {
  write_file_durably(path, encode_png(image, path.string()));
}

}  // namespace laterna::data
