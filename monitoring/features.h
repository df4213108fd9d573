// What an image looks like to a network: the features that FID, KID, precision and recall compare.
// Two kinds of network: any TorchScript file (the standard Inception one, where the user has it),
// and the built-in classifier, an HDF5 file that `laterna features train` makes.
//
// The same images give the same bits on any number of ranks and threads: images are taken in chunks
// of one fixed size (the last one padded), each computed whole by one thread, so whoever cuts the
// work between whole chunks changes nothing.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <filesystem>
#include <functional>
#include <memory>
#include <span>
#include <string>

#include "data/image_set.h"

namespace laterna::monitoring {

/// Of one image, in pixels.
struct ImageShape {
  std::int64_t channels = 0, height = 0, width = 0;
  bool operator==(const ImageShape&) const = default;
};
/// "1x28x28"
std::string to_text(const ImageShape& shape);

/// Told how many images are done, on the calling thread; what it throws ends the work.
using ImagesDone = std::function<void(std::int64_t)>;

/// Pixels of those images of a data set -> uint8 [n,C,H,W].
at::Tensor pixels_of(const data::ImageSet& set, std::span<const std::int64_t> images);
/// Of images first .. first+count-1.
at::Tensor pixels_of(const data::ImageSet& set, std::int64_t first, std::int64_t count);

class FeatureExtractor {
 public:
  /// Images that are computed at once. To share work between ranks, cut at multiples of it.
  static constexpr std::int64_t kChunk = 64;

  /// The network in that file, for images of that shape: `.h5` is a Classifier, anything else
  /// TorchScript. It is tried on one image. Throws data::InputError naming the file when it is
  /// missing, damaged, foreign, or does not take such images.
  static std::unique_ptr<FeatureExtractor> open(const std::filesystem::path& path,
                                                const ImageShape& shape);
  virtual ~FeatureExtractor() = default;

  /// `pixels` uint8 [n,C,H,W] on the CPU -> float32 [n, dimension()]. Uses at::get_num_threads()
  /// threads; one call at a time in a process. Throws data::InputError for images of another shape,
  /// and when the network fails on them.
  at::Tensor features(const at::Tensor& pixels, const ImagesDone& done = {}) const;

  const std::filesystem::path& path() const { return path_; }
  /// The file's name without its folder.
  std::string name() const { return path_.filename().string(); }
  /// Of the file: features are comparable only where it is the same.
  const std::string& sha256() const { return sha256_; }
  const ImageShape& shape() const { return shape_; }
  /// Features of an image.
  std::int64_t dimension() const { return dimension_; }

 protected:
  FeatureExtractor(const std::filesystem::path& path, const ImageShape& shape);
  void set_dimension(std::int64_t dimension) { dimension_ = dimension; }

  /// A whole chunk, uint8 [kChunk,C,H,W] -> float32 [kChunk,columns]; called from several threads.
  using OfChunk = std::function<at::Tensor(const at::Tensor&)>;
  /// `of_chunk` of all `pixels`, in chunks -> float32 [n,columns].
  at::Tensor in_chunks(const at::Tensor& pixels, std::int64_t columns, const OfChunk& of_chunk,
                       const ImagesDone& done) const;

 private:
  virtual at::Tensor features_of_chunk(const at::Tensor& pixels) const = 0;

  std::filesystem::path path_;
  std::string sha256_;
  ImageShape shape_;
  std::int64_t dimension_ = 0;
};

}  // namespace laterna::monitoring
