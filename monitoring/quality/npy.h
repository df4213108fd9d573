// Reads and writes one array in numpy's .npy format (versions 1 and 2): a header in Python syntax,
// then the data. Only little-endian numbers and strings, no objects that would need Python.
#pragma once

#include <ATen/core/Tensor.h>

#include <string>
#include <string_view>

namespace laterna::monitoring {

/// Parses an array of float32, float64, int32 or int64; the result is in C order. Throws
/// data::InputError with a message that begins with `name`.
at::Tensor parse_npy(std::string_view bytes, const std::string& name);

/// Parses a string scalar (<U); returns UTF-8. Throws as parse_npy() does.
std::string parse_npy_string(std::string_view bytes, const std::string& name);

/// Returns the .npy bytes of a float32, float64 or int64 array, or of a UTF-8 string scalar.
std::string make_npy(const at::Tensor& array);
std::string make_npy(const std::string& text);

}  // namespace laterna::monitoring
