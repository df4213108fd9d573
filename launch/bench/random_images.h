// Images for benchmarks that have no data set: random pixels, in a data set like any other, so that
// training reads them as it reads real ones.
#pragma once

#include <filesystem>
#include <memory>

#include "data/image_set.h"
#include "launch/config.h"

namespace laterna::launch {

/// A data set of random images of the model's shape in a temporary folder of this process, which
/// the destructor deletes. Throws data::WriteError when the folder cannot be written.
class RandomImages {
 public:
  explicit RandomImages(const Config& config);
  ~RandomImages();
  RandomImages(const RandomImages&) = delete;
  RandomImages& operator=(const RandomImages&) = delete;

  const data::ImageSet& set() const { return *images_; }

 private:
  std::filesystem::path folder_;
  std::unique_ptr<data::ImageSet> images_;
};

}  // namespace laterna::launch
