// How surely a classifier names images: a proxy for the share that a person could name, to be read
// beside the same figures of held-out real images. A classifier may be as sure of what it has never
// seen, such as noise, so the share alone proves nothing.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <vector>

namespace laterna::monitoring {

/// An image counts as named when its most probable class has a higher probability.
constexpr double kNamedProbability = 0.9;

/// What a classifier says of some images.
struct Naming {
  std::vector<std::int64_t> assigned;  // [classes]: images whose most probable class it is
  std::vector<std::int64_t> named;     // [classes]: those of them that count as named

  /// Counts more images: probabilities float32 [n, classes], rows that add up to 1.
  void add(const at::Tensor& probabilities);

  std::int64_t images() const;
  /// The share of the images that count as named, 0..1; NaN of no images.
  double named_share() const;
  /// exp of the entropy of `assigned`: 1 where all images are of one class, the number of classes
  /// where they spread evenly.
  double effective_classes() const;
};

}  // namespace laterna::monitoring
