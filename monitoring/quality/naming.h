// How confidently a classifier names the class of images: a proxy for the share of images that a
// person could name. Compare it with the same figures of held-out real images. A classifier may
// also be confident about images unlike its training data, such as noise, so a high share by itself
// proves nothing.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <vector>

namespace laterna::monitoring {

/// An image counts as named when the probability of its most probable class is above this.
constexpr double kNamedProbability = 0.9;

/// Counts of how a classifier names a set of images.
struct Naming {
  std::vector<std::int64_t> assigned;  // [classes]: images by most probable class
  std::vector<std::int64_t> named;     // [classes]: those that count as named

  /// Counts n more images by `probabilities`, float32 [n, classes], each row summing to 1.
  void add(const at::Tensor& probabilities);

  std::int64_t images() const;
  /// Returns the share of the images that count as named, 0..1; NaN for no images.
  double named_share() const;
  /// Returns exp of the entropy of `assigned`: 1 if all images are of one class, the number of
  /// classes if the images are spread evenly.
  double effective_classes() const;
};

}  // namespace laterna::monitoring
