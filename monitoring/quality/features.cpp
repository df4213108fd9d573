#include "monitoring/quality/features.h"

#include <ATen/ATen.h>
#include <fmt/format.h>

#include <algorithm>
#include <atomic>
#include <numeric>
#include <thread>
#include <vector>

#include "data/error.h"
#include "data/files/sha256.h"
#include "monitoring/quality/classifier.h"
#include "monitoring/quality/one_thread_each.h"
#include "monitoring/quality/torchscript.h"

namespace laterna::monitoring {
namespace {

/// Returns images first .. first+kChunk-1, padded with black images. The copy gives every
/// chunk the same memory alignment, on which a kernel's code path may depend.
at::Tensor chunk_of(const at::Tensor& pixels, std::int64_t first) {
  auto extents = pixels.sizes().vec();
  const std::int64_t count = std::min(FeatureExtractor::kChunk, extents[0] - first);
  extents[0] = FeatureExtractor::kChunk;
  at::Tensor chunk = at::zeros(extents, at::kByte);
  chunk.narrow(0, 0, count).copy_(pixels.narrow(0, first, count));
  return chunk;
}

}  // namespace

std::string to_text(const ImageShape& shape) {
  return fmt::format("{}x{}x{}", shape.channels, shape.height, shape.width);
}

FeatureExtractor::FeatureExtractor(const std::filesystem::path& path, const ImageShape& shape)
    : path_(path), sha256_(data::sha256_of_file(path)), shape_(shape) {}

std::unique_ptr<FeatureExtractor> FeatureExtractor::open(const std::filesystem::path& path,
                                                         const ImageShape& shape) {
  if (!std::filesystem::is_regular_file(path)) {
    throw data::InputError(path.string() +
                           ": no such file; give the TorchScript file of a network, or an .h5 file "
                           "written by `laterna features train`");
  }
  if (path.extension() != ".h5") return open_torchscript(path, shape);
  auto classifier = std::make_unique<Classifier>(path);
  if (!(classifier->shape() == shape)) {
    throw data::InputError(
        fmt::format("{}: the network takes images of {}, but these are {}; train another with "
                    "`laterna features train` on a data set of this shape",
                    path.string(), to_text(classifier->shape()), to_text(shape)));
  }
  return classifier;
}

at::Tensor FeatureExtractor::features(const at::Tensor& pixels, const ImagesDone& done) const {
  return in_chunks(
      pixels, dimension_, [this](const at::Tensor& chunk) { return features_of_chunk(chunk); },
      done);
}

at::Tensor FeatureExtractor::in_chunks(const at::Tensor& pixels, std::int64_t columns,
                                       const OfChunk& of_chunk, const ImagesDone& done) const {
  TORCH_CHECK(pixels.is_cpu() && pixels.scalar_type() == at::kByte && pixels.dim() == 4,
              "pixels must be uint8 [n,C,H,W] on the CPU");
  const ImageShape found{pixels.size(1), pixels.size(2), pixels.size(3)};
  if (!(found == shape_)) {
    throw data::InputError(
        fmt::format("{}: the network was opened for images of {}, but these are {}", path_.string(),
                    to_text(shape_), to_text(found)));
  }
  const std::int64_t count = pixels.size(0), chunks = (count + kChunk - 1) / kChunk;
  at::Tensor out = at::empty({count, columns}, at::kFloat);
  std::atomic<std::int64_t> finished{0};
  const auto caller = std::this_thread::get_id();
  OneThreadEach().each(chunks, [&](std::int64_t c) {
    const at::NoGradGuard no_grad;
    const std::int64_t first = c * kChunk, rows = std::min(kChunk, count - first);
    out.narrow(0, first, rows).copy_(of_chunk(chunk_of(pixels, first)).narrow(0, 0, rows));
    finished += rows;
    if (done && std::this_thread::get_id() == caller) done(finished);
  });
  if (done) done(count);
  return out;
}

}  // namespace laterna::monitoring
