// Reading a data set: dataset.json lists the shards; every shard is checked against it, then
// mapped.
#include "data/image_set.h"

#include <fcntl.h>
#include <fmt/core.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <fstream>
#include <nlohmann/json.hpp>
#include <stdexcept>

#include "data/error.h"
#include "data/files/hdf5_file.h"

namespace laterna::data {

// A whole file, mapped read-only.
struct ImageSet::Mapping {
  explicit Mapping(const std::filesystem::path& path) {
    const int file = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
    if (file < 0) throw InputError(fmt::format("{}: {}", path.string(), std::strerror(errno)));
    bytes = std::filesystem::file_size(path);
    start = ::mmap(nullptr, bytes, PROT_READ, MAP_SHARED, file, 0);
    const int error = errno;
    ::close(file);
    if (start == MAP_FAILED) {
      throw InputError(
          fmt::format("{}: cannot be mapped into memory: {}", path.string(), std::strerror(error)));
    }
  }
  ~Mapping() { ::munmap(start, bytes); }
  Mapping(const Mapping&) = delete;
  Mapping& operator=(const Mapping&) = delete;

  void* start;
  std::size_t bytes;
  const std::uint8_t* images = nullptr;  // the HDF5 data set `images` in the mapping
};

namespace {

constexpr const char* kMakeAgain = "import the data set again";

nlohmann::json read_index(const std::filesystem::path& folder) {
  const std::filesystem::path path = folder / "dataset.json";
  std::error_code error;
  if (!std::filesystem::is_directory(folder, error)) {
    throw InputError(fmt::format(
        "{}: no such data set folder; create one with `laterna data make` or `laterna data import`",
        folder.string()));
  }
  std::ifstream stream(path);
  if (!stream) {
    throw InputError(
        fmt::format("{}: missing; the folder is not a data set, or its import did not finish: "
                    "create it with `laterna data make` or `laterna data import`",
                    path.string()));
  }
  try {
    return nlohmann::json::parse(stream);
  } catch (const nlohmann::json::exception& parse) {
    throw InputError(
        fmt::format("{}: not valid JSON ({}); {}", path.string(), parse.what(), kMakeAgain));
  }
}

void require(bool condition, const std::filesystem::path& path, const std::string& what) {
  if (!condition) throw InputError(fmt::format("{}: {}; {}", path.string(), what, kMakeAgain));
}

}  // namespace

ImageSet::ImageSet() = default;
ImageSet::~ImageSet() = default;
ImageSet::ImageSet(ImageSet&&) noexcept = default;
ImageSet& ImageSet::operator=(ImageSet&&) noexcept = default;

ImageSet ImageSet::open(const std::filesystem::path& folder) {
  const nlohmann::json index = read_index(folder);
  const std::filesystem::path path = folder / "dataset.json";
  ImageSet set;
  set.folder_ = folder;
  std::int64_t count = 0;
  try {
    require(index.at("format") == "laterna-dataset" && index.at("version") == 1, path,
            "not a data set of this version of laterna");
    set.name_ = index.at("name");
    set.split_ = index.at("split");
    set.sha256_ = index.at("sha256");
    const std::vector<int> shape = index.at("shape");
    require(shape.size() == 3 && *std::min_element(shape.begin(), shape.end()) > 0, path,
            "`shape` is not [C,H,W]");
    set.channels_ = shape[0], set.height_ = shape[1], set.width_ = shape[2];
    count = index.at("count");
    set.has_labels_ = index.at("labels");
    for (const nlohmann::json& shard : index.at("shards")) {
      set.shards_.push_back({shard.at("file"), shard.at("count"), shard.at("sha256")});
    }
  } catch (const nlohmann::json::exception& missing) {
    require(false, path, fmt::format("a field is missing or wrong ({})", missing.what()));
  }
  for (const ShardInfo& shard : set.shards_) set.open_shard(shard);
  require(set.count_ == count && count > 0, path,
          fmt::format("`count` is {}, but the shards hold {} images", count, set.count_));
  return set;
}

void ImageSet::open_shard(const ShardInfo& shard) {
  const std::filesystem::path path = folder_ / shard.file;
  const Hdf5File file = Hdf5File::open(path);
  require(file.has_attribute("/", "format") &&
              file.string_attribute("/", "format") == "laterna-images" &&
              file.integer_attribute("/", "version") == 1,
          path, "not a shard of this version of laterna");
  require(file.string_attribute("/", "sha256") == shard.sha256, path,
          "its recorded checksum differs from dataset.json: the file belongs to another data set");
  const Shape shape{shard.count, channels_, height_, width_};
  require(file.info("images").shape == shape, path,
          "the shape of `images` differs from dataset.json");
  const std::int64_t offset = file.offset("images", Type::uint8);
  if (has_labels_) {
    require(file.contains("labels"), path, "`labels` is missing");
    const std::vector<std::int32_t> labels = file.read<std::int32_t>("labels");
    require(static_cast<std::int64_t>(labels.size()) == shard.count, path,
            fmt::format("{} labels for {} images", labels.size(), shard.count));
    labels_.insert(labels_.end(), labels.begin(), labels.end());
  }
  auto mapping = std::make_unique<Mapping>(path);
  require(static_cast<std::int64_t>(mapping->bytes) >= offset + shard.count * image_bytes(), path,
          "cut short");
  mapping->images = static_cast<const std::uint8_t*>(mapping->start) + offset;
  mappings_.push_back(std::move(mapping));
  first_.push_back(count_);
  count_ += shard.count;
}

std::size_t ImageSet::shard_of(std::int64_t index) const {
  if (index < 0 || index >= count_) {
    throw std::out_of_range(fmt::format("image {} of {}", index, count_));
  }
  const auto after = std::upper_bound(first_.begin(), first_.end(), index);
  return static_cast<std::size_t>(after - first_.begin()) - 1;
}

const std::uint8_t* ImageSet::image(std::int64_t index) const {
  const std::size_t shard = shard_of(index);
  return mappings_[shard]->images + (index - first_[shard]) * image_bytes();
}

std::int32_t ImageSet::label(std::int64_t index) const {
  return labels_.at(static_cast<std::size_t>(index));
}

bool ImageSet::shard_is_intact(std::size_t shard) const {
  const auto bytes = static_cast<std::size_t>(shards_.at(shard).count * image_bytes());
  return data::sha256(mappings_[shard]->images, bytes) == shards_[shard].sha256;
}

void ImageSet::verify(const std::function<void()>& progress) const {
  Sha256 all;
  for (std::size_t shard = 0; shard < shards_.size(); ++shard) {
    require(shard_is_intact(shard), folder_ / shards_[shard].file,
            "damaged: the checksum of its pixels differs from the recorded one");
    all.update(mappings_[shard]->images,
               static_cast<std::size_t>(shards_[shard].count * image_bytes()));
    progress();
  }
  require(all.finish() == sha256_, folder_ / "dataset.json",
          "`sha256` does not match the pixels of all shards: shards are missing or out of order");
}

}  // namespace laterna::data
