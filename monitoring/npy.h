// One array as numpy stores it (.npy, versions 1 and 2): a header in Python's syntax, then the
// numbers. Little-endian numbers and strings; nothing that would need Python to be read.
#pragma once

#include <ATen/core/Tensor.h>

#include <string>
#include <string_view>

namespace laterna::monitoring {

/// An array of float32, float64, int32 or int64; always in C order. `name` is for messages: throws
/// data::InputError beginning with it.
at::Tensor parse_npy(std::string_view bytes, const std::string& name);

/// A string scalar (<U), as UTF-8.
std::string parse_npy_string(std::string_view bytes, const std::string& name);

std::string make_npy(const at::Tensor& array);
std::string make_npy(const std::string& text);

}  // namespace laterna::monitoring
