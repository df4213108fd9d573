// Reads headers with their three keys in any order; writes them as numpy 1.x and 2.x do.
#include "monitoring/quality/npy.h"

#include <ATen/ATen.h>
#include <fmt/format.h>
#include <fmt/ranges.h>
#include <iconv.h>

#include <algorithm>
#include <bit>
#include <cstring>
#include <numeric>
#include <regex>
#include <vector>

#include "data/error.h"

namespace laterna::monitoring {
namespace {

static_assert(std::endian::native == std::endian::little, "files are little-endian, read as is");

constexpr std::string_view kMagic = "\x93NUMPY";

struct Header {
  std::string type;  // such as "<f8"
  bool columns_first = false;
  std::vector<std::int64_t> shape;
  std::string_view data;
};

[[noreturn]] void fail(const std::string& name, const std::string& what) {
  throw data::InputError(name + ": " + what);
}

std::vector<std::int64_t> parse_shape(std::string text, const std::string& name) {
  std::vector<std::int64_t> shape;
  static const std::regex number("[0-9]+");
  for (std::sregex_iterator it(text.begin(), text.end(), number), end; it != end; ++it) {
    if (it->length() > 12 || shape.size() == 8) fail(name, "impossible shape (" + text + ")");
    shape.push_back(std::stoll(it->str()));
  }
  return shape;
}

Header parse_header(std::string_view bytes, const std::string& name) {
  if (!bytes.starts_with(kMagic) || bytes.size() < 12) fail(name, "not numpy data, or cut short");
  const int version = bytes[6];
  if (version != 1 && version != 2) fail(name, fmt::format(".npy version {}, not 1 or 2", version));
  std::uint32_t length = 0;
  const std::size_t width = version == 1 ? 2 : 4, begin = 8 + width;
  std::memcpy(&length, bytes.data() + 8, width);
  if (bytes.size() - begin < length) fail(name, "its header is cut short");
  if (length > 4096) fail(name, "its header is longer than that of any array of numbers");
  const std::string text(bytes.substr(begin, length));
  static const std::regex type("'descr': *'([^']*)'"), order("'fortran_order': *(True|False)"),
      shape("'shape': *\\(([^)]*)\\)");
  std::smatch type_found, order_found, shape_found;
  if (!std::regex_search(text, type_found, type) || !std::regex_search(text, order_found, order) ||
      !std::regex_search(text, shape_found, shape)) {
    fail(name, "its header cannot be parsed: " + text);
  }
  if (type_found[1].str().ends_with('O')) {
    fail(name, "holds Python objects, which are not supported; save numbers or a string");
  }
  return {type_found[1], order_found[1] == "True", parse_shape(shape_found[1], name),
          bytes.substr(begin + length)};
}

/// Returns the bytes that the shape needs, as double: an impossible shape cannot overflow.
double bytes_of(const Header& header, std::size_t item) {
  double bytes = double(item);
  for (const std::int64_t size : header.shape) bytes *= double(size);
  return bytes;
}

std::string convert(const char* from, const char* to, std::string_view in,
                    const std::string& name) {
  const iconv_t conversion = iconv_open(to, from);
  std::string out(in.size() * 4, '\0');
  char *source = const_cast<char*>(in.data()), *target = out.data();
  std::size_t left = in.size(), free = out.size();
  const bool done = iconv(conversion, &source, &left, &target, &free) != std::size_t(-1);
  iconv_close(conversion);
  if (!done) fail(name, fmt::format("its text is not valid {}", from));
  out.resize(out.size() - free);
  return out;
}

std::string with_header(const std::string& type, const std::string& shape, std::string_view data) {
  std::string text =
      fmt::format("{{'descr': '{}', 'fortran_order': False, 'shape': ({}), }}", type, shape);
  text.append(63 - (10 + text.size()) % 64, ' ');  // the data begins at a multiple of 64
  text += '\n';
  std::string bytes(kMagic);
  bytes +=
      {'\x01', '\x00', static_cast<char>(text.size() % 256), static_cast<char>(text.size() / 256)};
  return bytes.append(text).append(data);
}

}  // namespace

at::Tensor parse_npy(std::string_view bytes, const std::string& name) {
  const Header header = parse_header(bytes, name);
  at::ScalarType type;
  if (header.type == "<f8") {
    type = at::kDouble;
  } else if (header.type == "<f4") {
    type = at::kFloat;
  } else if (header.type == "<i8") {
    type = at::kLong;
  } else if (header.type == "<i4") {
    type = at::kInt;
  } else {
    fail(name, fmt::format("type {}: must be float64, float32, int64 or int32 (little-endian)",
                           header.type));
  }
  const double wanted = bytes_of(header, c10::elementSize(type));
  if (wanted != double(header.data.size())) {
    fail(name, fmt::format("shape ({}) needs {:.0f} bytes of data, but there are {}",
                           fmt::join(header.shape, ", "), wanted, header.data.size()));
  }
  auto shape = header.shape;
  if (header.columns_first) std::reverse(shape.begin(), shape.end());
  at::Tensor array = at::empty(shape, type);
  std::memcpy(array.data_ptr(), header.data.data(), header.data.size());
  if (!header.columns_first) return array;
  std::vector<std::int64_t> dimensions(array.dim());
  std::iota(dimensions.rbegin(), dimensions.rend(), 0);
  return array.permute(dimensions).contiguous();
}

std::string parse_npy_string(std::string_view bytes, const std::string& name) {
  const Header header = parse_header(bytes, name);
  if (!header.type.starts_with("<U") || !header.shape.empty() || header.data.size() % 4 != 0 ||
      header.type != fmt::format("<U{}", header.data.size() / 4)) {
    fail(name, fmt::format("type {}, shape ({}), {} bytes of data: must be one string (<U)",
                           header.type, fmt::join(header.shape, ", "), header.data.size()));
  }
  std::string text = convert("UTF-32LE", "UTF-8", header.data, name);
  text.erase(text.find_last_not_of('\0') + 1);
  return text;
}

std::string make_npy(const at::Tensor& array) {
  const at::Tensor plain = array.contiguous();
  const char* type = plain.scalar_type() == at::kDouble  ? "<f8"
                     : plain.scalar_type() == at::kFloat ? "<f4"
                                                         : "<i8";
  TORCH_CHECK(type[1] == 'f' || plain.scalar_type() == at::kLong,
              "make_npy() needs float32, float64 or int64");
  std::string shape;
  for (const std::int64_t size : plain.sizes()) shape += fmt::format("{}, ", size);
  return with_header(type, shape, {static_cast<const char*>(plain.data_ptr()), plain.nbytes()});
}

std::string make_npy(const std::string& text) {
  std::string wide = convert("UTF-8", "UTF-32LE", text, "text");
  if (wide.empty()) wide.assign(4, '\0');
  return with_header(fmt::format("<U{}", wide.size() / 4), "", wide);
}

}  // namespace laterna::monitoring
