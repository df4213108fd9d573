// Feature extractors: networks that map images to the features that FID, KID, precision and recall
// compare. A network is either a TorchScript file (such as the standard Inception network, where
// the user has it) or the built-in classifier, an HDF5 file that `laterna features train` writes.
//
// The same images give the same bits on any number of ranks and threads: images are computed in
// chunks of one fixed size (the last one padded), each by a single thread, so splitting the work at
// chunk boundaries does not change the result.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <filesystem>
#include <functional>
#include <memory>
#include <string>

namespace laterna::monitoring {

/// Shape of one image; height and width in pixels.
struct ImageShape {
  std::int64_t channels = 0, height = 0, width = 0;
  bool operator==(const ImageShape&) const = default;
};
/// Returns the shape as text, such as "1x28x28" (channels x height x width).
std::string to_text(const ImageShape& shape);

/// Receives the number of images done so far, on the calling thread; an exception ends the work.
using ImagesDone = std::function<void(std::int64_t)>;

class FeatureExtractor {
 public:
  /// Number of images computed at once. Work is split between ranks at multiples of it.
  static constexpr std::int64_t kChunk = 64;

  /// Opens the network in a file for images of `shape`: `.h5` is a Classifier, anything else
  /// TorchScript, which is tried on one image. Throws data::InputError naming the file when it is
  /// missing, damaged, of another kind, or does not accept such images.
  static std::unique_ptr<FeatureExtractor> open(const std::filesystem::path& path,
                                                const ImageShape& shape);
  virtual ~FeatureExtractor() = default;

  /// Returns the features, float32 [n, dimension()], of `pixels`, uint8 [n,C,H,W] on the CPU. Uses
  /// at::get_num_threads() threads; only one call at a time in a process. Throws data::InputError
  /// for images of another shape, and when the network fails on them.
  at::Tensor features(const at::Tensor& pixels, const ImagesDone& done = {}) const;

  const std::filesystem::path& path() const { return path_; }
  /// Returns the name of the network's file without its folder.
  std::string name() const { return path_.filename().string(); }
  /// Returns the SHA-256 of the network's file; only features with the same one are comparable.
  const std::string& sha256() const { return sha256_; }
  const ImageShape& shape() const { return shape_; }
  /// Returns the number of features of one image.
  std::int64_t dimension() const { return dimension_; }

 protected:
  FeatureExtractor(const std::filesystem::path& path, const ImageShape& shape);
  void set_dimension(std::int64_t dimension) { dimension_ = dimension; }

  /// Maps a chunk, uint8 [kChunk,C,H,W], to float32 [kChunk,columns]; called from several threads.
  using OfChunk = std::function<at::Tensor(const at::Tensor&)>;
  /// Applies `of_chunk` to all `pixels` chunk by chunk; returns float32 [n,columns].
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
