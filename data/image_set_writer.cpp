// Writing a data set: a shard is collected in memory, written to a .part file, synced and renamed.
// dataset.json is written last, so that a folder that has it is complete.
#include <fmt/core.h>

#include <algorithm>
#include <nlohmann/json.hpp>
#include <stdexcept>

#include "data/error.h"
#include "data/files/durable_file.h"
#include "data/files/hdf5_file.h"
#include "data/image_set.h"

namespace laterna::data {
namespace {

constexpr std::int64_t kShardBytes = std::int64_t{128} << 20;

// Whether a file may be the remainder of an interrupted import; dataset.json never is.
bool is_leftover(const std::string& name) {
  return name == "dataset.json.part" || name == "lock" || name.starts_with("lock.") ||
         (name.starts_with("shard-") && (name.ends_with(".h5") || name.ends_with(".h5.part")));
}

/// Throws WriteError unless the folder is empty or holds only what an interrupted import left, the
/// files of which are returned.
std::vector<std::filesystem::path> leftovers_in(const std::filesystem::path& folder) {
  std::vector<std::filesystem::path> leftovers;
  for (const auto& entry : std::filesystem::directory_iterator(folder)) {
    if (!is_leftover(entry.path().filename()) || std::filesystem::exists(folder / "dataset.json")) {
      throw WriteError(fmt::format(
          "{}: the folder is not empty; choose a new one or remove its contents", folder.string()));
    }
    leftovers.push_back(entry.path());
  }
  return leftovers;
}

/// Creates the folder, or empties one that an interrupted import left, and locks it.
std::unique_ptr<FolderLock> make_empty_folder(const std::filesystem::path& folder) {
  std::error_code error;
  std::filesystem::create_directories(folder, error);
  if (error || !std::filesystem::is_directory(folder)) {
    throw WriteError(fmt::format("{}: the folder cannot be created: {}; choose another path",
                                 folder.string(),
                                 error ? error.message() : "a file of this name exists"));
  }
  leftovers_in(folder);  // before a lock file is written to somebody's folder
  try {
    auto lock = std::make_unique<FolderLock>(
        folder, [](const std::string& text) { fmt::print(stderr, "warning: {}\n", text); });
    for (const auto& path : leftovers_in(folder)) {
      if (!path.filename().string().starts_with("lock")) std::filesystem::remove(path);
    }
    return lock;
  } catch (const FolderLocked& locked) {
    throw WriteError(
        fmt::format("{}: another data set is being made there ({}); choose a new folder",
                    folder.string(), locked.owner.describe()));
  }
}

}  // namespace

ImageSetWriter::ImageSetWriter(std::filesystem::path folder, ImageSetOptions options)
    : folder_(std::move(folder)), options_(std::move(options)) {
  if (options_.channels < 1 || options_.height < 1 || options_.width < 1) {
    throw std::invalid_argument("an image must have at least one channel, row and column");
  }
  const std::int64_t bytes = std::int64_t{options_.channels} * options_.height * options_.width;
  image_bytes_ = static_cast<std::size_t>(bytes);
  if (options_.shard_images < 1) {
    options_.shard_images = std::max<std::int64_t>(1, kShardBytes / bytes);
  }
  lock_ = make_empty_folder(folder_);
}

void ImageSetWriter::add(const std::uint8_t* pixels, std::int32_t label) {
  pixels_.insert(pixels_.end(), pixels, pixels + image_bytes_);
  labels_.push_back(label);
  ++count_;
  if (static_cast<std::int64_t>(labels_.size()) == options_.shard_images) write_shard();
}

void ImageSetWriter::write_shard() {
  const auto count = static_cast<std::int64_t>(labels_.size());
  const std::string name = fmt::format("shard-{:05}.h5", shards_.size());
  const std::string hash = data::sha256(pixels_.data(), pixels_.size());
  const std::filesystem::path part = folder_ / (name + ".part");
  Hdf5File file = Hdf5File::create(part);
  file.set_attribute("/", "format", "laterna-images");
  file.set_attribute("/", "version", 1);
  file.set_attribute("/", "name", options_.name);
  file.set_attribute("/", "split", options_.split);
  file.set_attribute("/", "sha256", hash);
  file.write("images", {count, options_.channels, options_.height, options_.width}, pixels_.data());
  if (options_.labels) file.write("labels", {count}, labels_.data());
  file.close();
  rename_durably(part, folder_ / name);
  all_pixels_.update(pixels_.data(), pixels_.size());
  shards_.push_back({name, count, hash});
  pixels_.clear();
  labels_.clear();
}

void ImageSetWriter::finish() {
  if (count_ == 0) throw InputError(fmt::format("{}: no images to write", folder_.string()));
  if (!labels_.empty()) write_shard();
  nlohmann::ordered_json shards = nlohmann::ordered_json::array();
  for (const ShardInfo& shard : shards_) {
    shards.push_back({{"file", shard.file}, {"count", shard.count}, {"sha256", shard.sha256}});
  }
  const nlohmann::ordered_json index = {
      {"format", "laterna-dataset"},
      {"version", 1},
      {"name", options_.name},
      {"split", options_.split},
      {"shape", {options_.channels, options_.height, options_.width}},
      {"count", count_},
      {"labels", options_.labels},
      {"sha256", all_pixels_.finish()},
      {"shards", shards}};
  // Names of files and folders may hold bytes that are not UTF-8; replacing them keeps the import
  // from failing.
  write_file_durably(
      folder_ / "dataset.json",
      index.dump(2, ' ', false, nlohmann::ordered_json::error_handler_t::replace) + "\n");
  lock_.reset();
  std::filesystem::remove(folder_ / "lock");
}

}  // namespace laterna::data
