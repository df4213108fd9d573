// Computes features with a network from a TorchScript file.
#pragma once

#include "monitoring/quality/features.h"

namespace laterna::monitoring {

/// Opens a network for images of `shape`. It is called as forward(x, return_features=True), or
/// forward(x) where forward has no such argument, with x [n,C,H,W] in 0..255, and must return [n,d]
/// or [n,d,1,1]. The form of x is found by trying one black image: float32, then uint8, then, for
/// grey images, both repeated to three channels; the first that the network accepts is used. Throws
/// data::InputError naming the file.
std::unique_ptr<FeatureExtractor> open_torchscript(const std::filesystem::path& path,
                                                   const ImageShape& shape);

}  // namespace laterna::monitoring
