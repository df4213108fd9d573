// Reading a data set: dataset.json lists the shards; every shard is checked against it, then kept
// open.
#include "data/image_set.h"

#include <fcntl.h>
#include <fmt/core.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <fstream>
#include <nlohmann/json.hpp>
#include <stdexcept>

#include "data/error.h"
#include "data/files/hdf5_file.h"

namespace laterna::data {

namespace {

constexpr const char* kMakeAgain = "import the data set again";
constexpr std::int64_t kHashedAtOnce = std::int64_t{1} << 20;  // bytes

/// Returns a file's size and time, which change when it is written to.
std::array<std::int64_t, 3> state_of(int file) {
  struct stat state {};
  if (::fstat(file, &state) != 0) return {-1, 0, 0};
  return {state.st_size, state.st_mtim.tv_sec, state.st_mtim.tv_nsec};
}

}  // namespace

/// A shard's pixels, in a file that must stay as it was when it was opened.
class ImageSet::OpenShard {
 public:
  explicit OpenShard(std::filesystem::path path)
      : path_(std::move(path)), file_(::open(path_.c_str(), O_RDONLY | O_CLOEXEC)) {
    if (file_ < 0) throw InputError(fmt::format("{}: {}", path_.string(), std::strerror(errno)));
    state_ = state_of(file_);
  }
  ~OpenShard() { ::close(file_); }
  OpenShard(const OpenShard&) = delete;
  OpenShard& operator=(const OpenShard&) = delete;

  std::int64_t size() const { return state_[0]; }
  /// Sets where the HDF5 data set `images` begins in the file, in bytes.
  void set_offset(std::int64_t offset) { offset_ = offset; }

  /// Reads `count` bytes from byte `first` of the pixels.
  void read(std::int64_t first, std::int64_t count, std::uint8_t* to) const {
    if (state_of(file_) != state_) {
      throw InputError(
          fmt::format("{}: was changed or cut short while it was in use; put the data set back as "
                      "it was, or import it again to a new folder",
                      path_.string()));
    }
    for (std::int64_t done = 0; done < count;) {
      const ssize_t got =
          ::pread(file_, to + done, static_cast<std::size_t>(count - done), offset_ + first + done);
      if (got < 0 && errno == EINTR) continue;
      if (got <= 0) {
        throw InputError(fmt::format("{}: cannot be read: {}", path_.string(),
                                     got < 0 ? std::strerror(errno) : "cut short"));
      }
      done += got;
    }
  }

 private:
  std::filesystem::path path_;
  int file_;
  std::array<std::int64_t, 3> state_;
  std::int64_t offset_ = 0;
};

namespace {

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
  auto opened = std::make_unique<OpenShard>(path);
  require(opened->size() >= offset + shard.count * image_bytes(), path, "cut short");
  opened->set_offset(offset);
  open_shards_.push_back(std::move(opened));
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

void ImageSet::read(std::int64_t index, std::uint8_t* to) const {
  const std::size_t shard = shard_of(index);
  open_shards_[shard]->read((index - first_[shard]) * image_bytes(), image_bytes(), to);
}

std::vector<std::uint8_t> ImageSet::image(std::int64_t index) const {
  std::vector<std::uint8_t> pixels(static_cast<std::size_t>(image_bytes()));
  read(index, pixels.data());
  return pixels;
}

std::int32_t ImageSet::label(std::int64_t index) const {
  return labels_.at(static_cast<std::size_t>(index));
}

void ImageSet::hash_pixels(std::size_t shard, std::initializer_list<Sha256*> digests,
                           const std::function<void()>& progress) const {
  const std::int64_t bytes = shards_.at(shard).count * image_bytes();
  std::vector<std::uint8_t> block(static_cast<std::size_t>(std::min(bytes, kHashedAtOnce)));
  for (std::int64_t done = 0; done < bytes; done += kHashedAtOnce) {
    const std::int64_t count = std::min(bytes - done, kHashedAtOnce);
    open_shards_[shard]->read(done, count, block.data());
    for (auto* digest : digests) digest->update(block.data(), static_cast<std::size_t>(count));
    progress();
  }
}

bool ImageSet::shard_is_intact(std::size_t shard) const {
  Sha256 pixels;
  hash_pixels(shard, {&pixels}, [] {});
  return pixels.finish() == shards_[shard].sha256;
}

void ImageSet::verify(const std::function<void()>& progress) const {
  Sha256 all, pixels;
  for (std::size_t shard = 0; shard < shards_.size(); ++shard) {
    hash_pixels(shard, {&all, &pixels}, progress);
    require(pixels.finish() == shards_[shard].sha256, folder_ / shards_[shard].file,
            "damaged: the checksum of its pixels differs from the recorded one");
  }
  require(all.finish() == sha256_, folder_ / "dataset.json",
          "`sha256` does not match the pixels of all shards: shards are missing or out of order");
}

}  // namespace laterna::data
