// Images of a data set as a tensor.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <span>

#include "data/image_set.h"

namespace laterna::launch {

/// Returns the pixels of the given images of a data set, uint8 [n,C,H,W].
at::Tensor pixels_of(const data::ImageSet& set, std::span<const std::int64_t> images);
/// Returns the pixels of images first .. first+count-1, uint8 [count,C,H,W].
at::Tensor pixels_of(const data::ImageSet& set, std::int64_t first, std::int64_t count);

}  // namespace laterna::launch
