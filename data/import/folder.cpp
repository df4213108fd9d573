// Folders of images: any (import_folder) or CelebA's (import_celeba). Paths are sorted as bytes, so
// that the order is the same on every machine.
#include <fmt/core.h>

#include <algorithm>
#include <map>
#include <optional>
#include <vector>

#include "data/error.h"
#include "data/image_set.h"
#include "data/import/import.h"
#include "data/pictures/image_file.h"

namespace laterna::data {
namespace {

using Path = std::filesystem::path;

// Returns the paths of all images under `folder`, relative to it, sorted.
std::vector<Path> pictures_under(const Path& folder) {
  if (!std::filesystem::is_directory(folder)) {
    throw InputError(fmt::format("{}: no such folder", folder.string()));
  }
  std::vector<Path> paths;
  const auto follow = std::filesystem::directory_options::follow_directory_symlink;
  for (const auto& entry : std::filesystem::recursive_directory_iterator(folder, follow)) {
    if (entry.is_regular_file() && has_image_name(entry.path())) {
      paths.push_back(entry.path().lexically_relative(folder));
    }
  }
  if (paths.empty()) {
    throw InputError(fmt::format("{}: no PNG, JPEG or WebP files in it or below", folder.string()));
  }
  std::sort(paths.begin(), paths.end(),
            [](const Path& a, const Path& b) { return a.native() < b.native(); });
  return paths;
}

// Whether the folders in `source` are splits rather than classes: all have names of splits.
bool holds_splits(const Path& source) {
  std::error_code missing;  // pictures_under() reports a missing folder
  int splits = 0;
  for (const auto& entry : std::filesystem::directory_iterator(source, missing)) {
    if (!entry.is_directory()) continue;
    const std::string name = entry.path().filename();
    if (name != "train" && name != "test" && name != "val" && name != "valid") return false;
    ++splits;
  }
  return splits > 0;
}

// Returns the class of every image: the first folder on its path, numbered in name order; nothing
// when an image lies in `source` itself.
std::optional<std::vector<std::int32_t>> classes_of(const std::vector<Path>& paths) {
  std::map<std::string, std::int32_t> number;
  for (const Path& path : paths) {
    if (!path.has_parent_path()) return std::nullopt;
    number[path.begin()->string()] = 0;
  }
  std::int32_t next = 0;
  for (auto& [name, value] : number) value = next++;
  std::vector<std::int32_t> classes;
  classes.reserve(paths.size());
  for (const Path& path : paths) classes.push_back(number[path.begin()->string()]);
  return classes;
}

// Applies the crop and resize of `options`; `path` is for errors.
Image prepared(const Image& image, const ImportOptions& options, const Path& path) {
  const int shorter = std::min(image.height, image.width);
  if (options.crop > shorter) {
    throw InputError(
        fmt::format("{}: {}x{} pixels are too few for a crop of {}; give a smaller --crop",
                    path.string(), image.height, image.width, options.crop));
  }
  if (options.crop == 0 && options.size == 0) return image;
  const int side = options.crop ? options.crop : shorter;
  const Image square = centre_crop(image, side, side);
  return options.size ? resize(square, options.size, options.size) : square;
}

void import_pictures(const ImportOptions& options, const std::vector<Path>& paths,
                     const std::optional<std::vector<std::int32_t>>& classes,
                     const Progress& progress) {
  std::optional<ImageSetWriter> writer;
  Image first;
  auto total = static_cast<std::int64_t>(paths.size());
  if (options.limit > 0) total = std::min(total, options.limit);
  for (std::int64_t i = 0; i < total; ++i) {
    const Path path = options.source / paths[static_cast<std::size_t>(i)];
    Image image = prepared(read_image(path), options, path);
    if (!writer) {
      first = to_channels(image, options.channels ? options.channels : image.channels);
      writer.emplace(options.output, ImageSetOptions{.name = options.name,
                                                     .split = options.split,
                                                     .channels = first.channels,
                                                     .height = first.height,
                                                     .width = first.width,
                                                     .labels = classes.has_value()});
    }
    if (image.height != first.height || image.width != first.width) {
      throw InputError(
          fmt::format("{}: {}x{} pixels, but the first image has {}x{}; give a --size to "
                      "resize all images to",
                      path.string(), image.height, image.width, first.height, first.width));
    }
    image = to_channels(image, first.channels);
    writer->add(image.pixels.data(), classes ? (*classes)[static_cast<std::size_t>(i)] : 0);
    if (progress && (i + 1) % 1000 == 0) progress(i + 1, total);
  }
  writer->finish();
  if (progress) progress(total, total);
}

}  // namespace

void import_folder(const ImportOptions& options, const Progress& progress) {
  ImportOptions complete = options;
  if (holds_splits(options.source)) complete.source /= options.split;
  const std::vector<Path> paths = pictures_under(complete.source);
  if (complete.name.empty()) complete.name = std::filesystem::canonical(options.source).filename();
  import_pictures(complete, paths, classes_of(paths), progress);
}

void import_celeba(const ImportOptions& options, const Progress& progress) {
  const std::vector<Path> paths = pictures_under(options.source);
  ImportOptions complete = options;
  if (complete.name.empty()) complete.name = "celeba";
  if (complete.crop == 0) complete.crop = 140;  // the face without most of the background
  if (complete.size == 0) complete.size = 64;
  complete.channels = 3;
  import_pictures(complete, paths, std::nullopt, progress);
}

}  // namespace laterna::data
