// CIFAR-10's binary version: records of one label byte and 3072 pixel bytes, [3,32,32], ten
// thousand per file. (CIFAR-10 as folders of images is read by import_folder.)
#include <fmt/core.h>

#include <array>
#include <fstream>
#include <vector>

#include "data/error.h"
#include "data/image_set.h"
#include "data/import/import.h"
#include "data/pictures/image_file.h"

namespace laterna::data {
namespace {

constexpr int kSide = 32;
constexpr std::size_t kRecord = 1 + 3 * kSide * kSide;

std::vector<std::filesystem::path> files_of(const ImportOptions& options) {
  std::vector<std::string> names;
  if (options.split == "train") {
    for (int i = 1; i <= 5; ++i) names.push_back(fmt::format("data_batch_{}.bin", i));
  } else if (options.split == "test") {
    names = {"test_batch.bin"};
  } else {
    throw InputError(fmt::format("{}: no split '{}' in CIFAR-10; give train or test",
                                 options.source.string(), options.split));
  }
  const std::filesystem::path inner = options.source / "cifar-10-batches-bin";
  const auto folder = std::filesystem::is_directory(inner) ? inner : options.source;
  std::vector<std::filesystem::path> paths;
  for (const std::string& name : names) {
    paths.push_back(folder / name);
    if (!std::filesystem::is_regular_file(paths.back())) {
      throw InputError(
          fmt::format("{}: missing; give the folder of CIFAR-10's binary version "
                      "(cifar-10-batches-bin)",
                      paths.back().string()));
    }
    const auto bytes = std::filesystem::file_size(paths.back());
    if (bytes == 0 || bytes % kRecord != 0) {
      throw InputError(
          fmt::format("{}: {} bytes are not a multiple of the record size {}: cut short, "
                      "or not a CIFAR-10 binary file",
                      paths.back().string(), bytes, kRecord));
    }
  }
  return paths;
}

}  // namespace

void import_cifar10(const ImportOptions& options, const Progress& progress) {
  const std::vector<std::filesystem::path> paths = files_of(options);
  std::int64_t total = 0;
  for (const auto& path : paths) {
    total += static_cast<std::int64_t>(std::filesystem::file_size(path) / kRecord);
  }
  if (options.limit > 0) total = std::min(total, options.limit);
  const int size = options.size ? options.size : kSide;
  ImageSetWriter writer(options.output, {.name = options.name.empty() ? "cifar10" : options.name,
                                         .split = options.split,
                                         .channels = 3,
                                         .height = size,
                                         .width = size});
  std::array<std::uint8_t, kRecord> record;
  for (const auto& path : paths) {
    std::ifstream file(path, std::ios::binary);
    while (writer.count() < total && file.read(reinterpret_cast<char*>(record.data()), kRecord)) {
      if (record[0] > 9) {
        throw InputError(fmt::format("{}: label {} in record {}: not a CIFAR-10 binary file",
                                     path.string(), record[0],
                                     static_cast<std::int64_t>(file.tellg()) / kRecord - 1));
      }
      const Image image{3, kSide, kSide, {record.begin() + 1, record.end()}};
      writer.add(resize(image, size, size).pixels.data(), record[0]);
      if (progress && writer.count() % 1000 == 0) progress(writer.count(), total);
    }
  }
  writer.finish();
  if (progress) progress(total, total);
}

}  // namespace laterna::data
