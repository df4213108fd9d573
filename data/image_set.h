// A data set on disk (spec section 4): a folder of HDF5 shards and dataset.json, which is written
// last. A shard holds `images` uint8 [n,C,H,W] and optionally `labels` int32 [n]. ImageSet keeps
// the shards open and reads single images, from the page cache, which all ranks of a machine share.
// It does not map them: a mapped file that is cut short kills the process that reads it (SIGBUS).
// All importers write through ImageSetWriter, which holds one shard in memory at a time.
#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <initializer_list>
#include <memory>
#include <string>
#include <vector>

#include "data/files/folder_lock.h"
#include "data/files/sha256.h"

namespace laterna::data {

/// One shard as listed in dataset.json.
struct ShardInfo {
  std::string file;    // in the data set's folder
  std::int64_t count;  // images
  std::string sha256;  // of the pixels
};

/// A data set, opened for reading. Movable; read() may be called from any thread.
class ImageSet {
 public:
  /// Opens a data set. Throws InputError when the folder, dataset.json or a shard is missing, or a
  /// shard is truncated, foreign, or inconsistent with dataset.json. Hashes are computed only by
  /// verify(); here the hash recorded in each shard is compared with dataset.json.
  static ImageSet open(const std::filesystem::path& folder);
  ~ImageSet();
  ImageSet(ImageSet&&) noexcept;
  ImageSet& operator=(ImageSet&&) noexcept;

  const std::filesystem::path& folder() const { return folder_; }
  const std::string& name() const { return name_; }
  const std::string& split() const { return split_; }
  /// SHA-256 of all pixels in order; it does not depend on the division into shards.
  const std::string& sha256() const { return sha256_; }
  std::int64_t count() const { return count_; }
  int channels() const { return channels_; }
  int height() const { return height_; }
  int width() const { return width_; }
  /// Bytes of one image, C*H*W.
  std::int64_t image_bytes() const { return std::int64_t{channels_} * height_ * width_; }

  /// Reads the pixels of image `index`, uint8 [C,H,W]. Throws InputError naming the shard when it
  /// was changed or cut short since it was opened, and std::out_of_range.
  void read(std::int64_t index, std::uint8_t* to) const;
  std::vector<std::uint8_t> image(std::int64_t index) const;
  bool has_labels() const { return has_labels_; }
  /// Returns the label of image `index`. Throws std::out_of_range, also when the set has no labels.
  std::int32_t label(std::int64_t index) const;

  const std::vector<ShardInfo>& shards() const { return shards_; }
  /// Reads the whole shard and returns whether its pixels have the recorded hash.
  bool shard_is_intact(std::size_t shard) const;
  /// Reads all shards and checks their hashes. Throws InputError naming the first damaged shard.
  /// `progress` is called after each MiB.
  void verify(const std::function<void()>& progress = [] {}) const;

 private:
  class OpenShard;
  ImageSet();
  void open_shard(const ShardInfo& shard);
  std::size_t shard_of(std::int64_t index) const;
  void hash_pixels(std::size_t shard, std::initializer_list<Sha256*> digests,
                   const std::function<void()>& progress) const;

  std::filesystem::path folder_;
  std::string name_, split_, sha256_;
  std::int64_t count_ = 0;
  int channels_ = 0, height_ = 0, width_ = 0;
  bool has_labels_ = false;
  std::vector<ShardInfo> shards_;
  std::vector<std::int64_t> first_;  // index of each shard's first image
  std::vector<std::unique_ptr<OpenShard>> open_shards_;
  std::vector<std::int32_t> labels_;
};

/// Properties of a data set to be written.
struct ImageSetOptions {
  std::string name, split;
  int channels, height, width;
  bool labels = true;
  std::int64_t shard_images = 0;  // 0: as many as fit into 128 MiB
};

/// Writes a data set: add() every image in order, then finish(). Without finish() there is no
/// dataset.json and the folder is not a data set. Throws WriteError.
class ImageSetWriter {
 public:
  /// Creates and locks the folder. Throws WriteError when it is not empty, because a data set is
  /// never overwritten, or when another program makes a data set there. (Shards of an interrupted
  /// import, without dataset.json, are removed.)
  ImageSetWriter(std::filesystem::path folder, ImageSetOptions options);
  /// Appends an image. `pixels` uint8 [C,H,W]; `label` is ignored when the set has no labels.
  void add(const std::uint8_t* pixels, std::int32_t label = 0);
  /// Writes the last shard and dataset.json durably. Throws InputError when no image was added.
  void finish();
  std::int64_t count() const { return count_; }

 private:
  void write_shard();

  std::filesystem::path folder_;
  ImageSetOptions options_;
  std::size_t image_bytes_;
  std::int64_t count_ = 0;
  std::vector<std::uint8_t> pixels_;  // of the shard being filled
  std::vector<std::int32_t> labels_;
  std::vector<ShardInfo> shards_;
  Sha256 all_pixels_;
  std::unique_ptr<FolderLock> lock_;
};

}  // namespace laterna::data
