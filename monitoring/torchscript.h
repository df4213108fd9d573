// Features by a network that comes as a TorchScript file.
#pragma once

#include "monitoring/features.h"

namespace laterna::monitoring {

/// Called as forward(x, return_features=True), or forward(x) where forward has no such argument,
/// with x [n,C,H,W] in 0..255; the answer is [n,d] or [n,d,1,1]. Whether x is float32 or uint8, and
/// grey images are repeated to three channels, shows when one black image is tried: float32 before
/// uint8, as they are before repeated, the first that the network does not refuse. Throws
/// data::InputError naming the file.
std::unique_ptr<FeatureExtractor> open_torchscript(const std::filesystem::path& path,
                                                   const ImageShape& shape);

}  // namespace laterna::monitoring
