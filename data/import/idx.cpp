// MNIST and its relatives are IDX files: a big-endian header of 32-bit words (magic, extents), then
// bytes. zlib reads plain files through the same calls as gzipped ones.
#include <fmt/core.h>
#include <zlib.h>

#include <array>
#include <memory>

#include "data/error.h"
#include "data/image_set.h"
#include "data/import/import.h"
#include "data/pictures/image_file.h"

namespace laterna::data {
namespace {

// Reads an IDX file from start to end.
class IdxFile {
 public:
  IdxFile(std::filesystem::path path, std::uint32_t magic, int extents, const char* kind)
      : path_(std::move(path)), file_(gzopen(path_.c_str(), "rb"), gzclose) {
    if (!file_) fail("cannot be opened");
    if (const std::uint32_t found = word(); found != magic) {
      fail(fmt::format("not an IDX file of {}: it starts with {:#010x} instead of {:#010x}", kind,
                       found, magic));
    }
    for (int i = 0; i < extents; ++i) extent_[static_cast<std::size_t>(i)] = word();
  }

  void read(std::uint8_t* out, std::size_t bytes) {
    const int got = gzread(file_.get(), out, static_cast<unsigned>(bytes));
    if (got == static_cast<int>(bytes)) return;
    fail("cut short or damaged: it holds less than its header says; download it again");
  }
  /// Throws InputError unless the file ends at the current position.
  void expect_end() {
    std::uint8_t byte;
    if (gzread(file_.get(), &byte, 1) != 0) fail("longer than its header says; download it again");
  }
  std::int64_t extent(std::size_t i) const { return extent_[i]; }
  const std::filesystem::path& path() const { return path_; }
  [[noreturn]] void fail(const std::string& what) const {
    throw InputError(fmt::format("{}: {}", path_.string(), what));
  }

 private:
  std::uint32_t word() {
    std::array<std::uint8_t, 4> b;
    read(b.data(), b.size());
    return std::uint32_t{b[0]} << 24 | std::uint32_t{b[1]} << 16 | std::uint32_t{b[2]} << 8 | b[3];
  }

  std::filesystem::path path_;
  std::unique_ptr<gzFile_s, int (*)(gzFile)> file_;
  std::array<std::uint32_t, 3> extent_{};
};

// Returns the path of `prefix`-`kind`-idx`n`-ubyte, with a dash or dot before idx, with or without
// .gz.
std::filesystem::path find_file(const std::filesystem::path& folder, const std::string& prefix,
                                const std::string& kind, int n) {
  for (const char* mark : {"-", "."}) {
    for (const char* ending : {"", ".gz"}) {
      auto path = folder / fmt::format("{}-{}{}idx{}-ubyte{}", prefix, kind, mark, n, ending);
      if (std::filesystem::exists(path)) return path;
    }
  }
  throw InputError(
      fmt::format("{}: no {}-{}-idx{}-ubyte or .gz in it; give the folder that holds "
                  "the IDX files",
                  folder.string(), prefix, kind, n));
}

}  // namespace

void import_idx(const ImportOptions& options, const Progress& progress) {
  if (options.split != "train" && options.split != "test") {
    throw InputError(fmt::format("{}: no split '{}' in IDX files; give train or test",
                                 options.source.string(), options.split));
  }
  const std::string prefix = options.split == "train" ? "train" : "t10k";
  IdxFile images(find_file(options.source, prefix, "images", 3), 0x00000803, 3, "images");
  IdxFile labels(find_file(options.source, prefix, "labels", 1), 0x00000801, 1, "labels");
  const std::int64_t count = images.extent(0);
  if (labels.extent(0) != count) {
    labels.fail(
        fmt::format("{} labels, but {} holds {} images; the two files do not belong "
                    "together",
                    labels.extent(0), images.path().string(), count));
  }
  if (count < 1 || images.extent(1) < 1 || images.extent(2) < 1 || images.extent(1) > 4096 ||
      images.extent(2) > 4096) {
    images.fail(fmt::format("damaged: its header says {} images of {}x{} pixels", count,
                            images.extent(1), images.extent(2)));
  }
  Image image{1, static_cast<int>(images.extent(1)), static_cast<int>(images.extent(2)), {}};
  image.pixels.resize(static_cast<std::size_t>(images.extent(1) * images.extent(2)));
  const int height = options.size ? options.size : image.height;
  const int width = options.size ? options.size : image.width;
  const std::string own_name = std::filesystem::canonical(options.source).filename();
  ImageSetWriter writer(options.output, {.name = options.name.empty() ? own_name : options.name,
                                         .split = options.split,
                                         .channels = 1,
                                         .height = height,
                                         .width = width});
  const std::int64_t wanted = options.limit > 0 ? std::min(options.limit, count) : count;
  for (std::int64_t i = 0; i < wanted; ++i) {
    std::uint8_t label = 0;
    images.read(image.pixels.data(), image.pixels.size());
    labels.read(&label, 1);
    writer.add(resize(image, height, width).pixels.data(), label);
    if (progress && (i + 1) % 1000 == 0) progress(i + 1, wanted);
  }
  if (wanted == count) images.expect_end(), labels.expect_end();
  writer.finish();
  if (progress) progress(wanted, wanted);
}

}  // namespace laterna::data
