// libzip reads and writes the zip and checks the CRC of each entry; npy.h handles the arrays.
#include "monitoring/quality/statistics_file.h"

#include <ATen/ATen.h>
#include <fmt/format.h>
#include <fmt/ranges.h>
#include <zip.h>

#include <memory>

#include "data/error.h"
#include "data/files/durable_file.h"
#include "monitoring/quality/npy.h"

namespace laterna::monitoring {
namespace {

using Archive = std::unique_ptr<zip_t, decltype(&zip_discard)>;
using Entry = std::unique_ptr<zip_file_t, decltype(&zip_fclose)>;
using Source = std::unique_ptr<zip_source_t, decltype(&zip_source_free)>;

constexpr const char* kAdvice = "recreate the statistics";

class Reader {
 public:
  explicit Reader(const std::filesystem::path& path)
      : path_(path), archive_(nullptr, &zip_discard) {
    int code = 0;
    archive_.reset(zip_open(path.c_str(), ZIP_RDONLY, &code));
    if (!archive_) {
      zip_error_t error;
      zip_error_init_with_code(&error, code);
      const std::string reason = zip_error_strerror(&error);
      zip_error_fini(&error);
      throw data::InputError(
          fmt::format("{}: not readable as .npz: {}; {}", path.string(), reason, kAdvice));
    }
  }

  bool has(const char* array) const { return find(array) >= 0; }

  at::Tensor numbers(const char* array) const { return parse_npy(bytes(array), name(array)); }
  std::optional<std::string> text(const char* array) const {
    if (!has(array)) return std::nullopt;
    return parse_npy_string(bytes(array), name(array));
  }
  [[noreturn]] void fail(const char* array, const std::string& what) const {
    throw data::InputError(fmt::format("{}: {}; {}", name(array), what, kAdvice));
  }

 private:
  std::string name(const char* array) const {
    return fmt::format("{}: array '{}'", path_.string(), array);
  }
  zip_int64_t find(const char* array) const {
    return zip_name_locate(archive_.get(), fmt::format("{}.npy", array).c_str(), 0);
  }
  // Reads in pieces to the end of the entry, whatever size the directory claims: libzip checks the
  // CRC only at the end.
  std::string bytes(const char* array) const {
    const zip_int64_t index = find(array);
    if (index < 0) fail(array, "is missing");
    const Entry entry(zip_fopen_index(archive_.get(), index, 0), &zip_fclose);
    if (!entry) fail(array, zip_strerror(archive_.get()));
    std::string bytes;
    std::vector<char> piece(1 << 20);
    zip_int64_t got = 0;
    while ((got = zip_fread(entry.get(), piece.data(), piece.size())) > 0) {
      bytes.append(piece.data(), got);
    }
    if (got < 0) {
      fail(array,
           fmt::format("is damaged ({})", zip_error_strerror(zip_file_get_error(entry.get()))));
    }
    return bytes;
  }

  std::filesystem::path path_;
  Archive archive_;
};

at::Tensor read_array(const Reader& reader, const char* array, at::ScalarType type,
                      const std::vector<std::int64_t>& shape) {  // -1: any size
  const at::Tensor found = reader.numbers(array);
  bool fits = found.dim() == std::int64_t(shape.size());
  for (std::size_t i = 0; fits && i < shape.size(); ++i) {
    fits = found.size(i) > 0 && (shape[i] < 0 || found.size(i) == shape[i]);
  }
  if (!fits) {
    reader.fail(array, fmt::format("has shape ({}) instead of ({}) (-1: any)",
                                   fmt::join(found.sizes(), ", "), fmt::join(shape, ", ")));
  }
  const bool numbers = at::isFloatingType(found.scalar_type());
  if (numbers != at::isFloatingType(type)) {
    reader.fail(array,
                numbers ? "does not hold integers" : "holds integers, not floating-point numbers");
  }
  if (!found.isfinite().all().item<bool>()) reader.fail(array, "not all values are finite");
  return found.to(type);
}

[[noreturn]] void fail_writing(const std::filesystem::path& path, const char* why) {
  throw data::WriteError(fmt::format("{}: cannot be packed as .npz: {}", path.string(), why));
}

struct Array {
  std::string name, bytes;
};

/// Returns a zip file of the arrays, stored uncompressed and with a fixed date.
std::string pack(const std::filesystem::path& path, const std::vector<Array>& arrays) {
  zip_error_t error;
  zip_error_init(&error);
  const Source packed(zip_source_buffer_create(nullptr, 0, 0, &error), &zip_source_free);
  if (!packed) fail_writing(path, zip_error_strerror(&error));
  zip_source_keep(packed.get());  // the archive takes one of the two references
  Archive archive(zip_open_from_source(packed.get(), ZIP_TRUNCATE, &error), &zip_discard);
  if (!archive) fail_writing(path, zip_error_strerror(&error));
  for (const Array& array : arrays) {
    zip_source_t* source =
        zip_source_buffer(archive.get(), array.bytes.data(), array.bytes.size(), 0);
    const zip_int64_t index =
        zip_file_add(archive.get(), (array.name + ".npy").c_str(), source, ZIP_FL_ENC_UTF_8);
    constexpr zip_uint16_t kFirstDay = (1 << 5) | 1;  // 1 January 1980, as numpy writes
    if (index < 0 || zip_set_file_compression(archive.get(), index, ZIP_CM_STORE, 0) != 0 ||
        zip_file_set_dostime(archive.get(), index, 0, kFirstDay, 0) != 0) {
      fail_writing(path, zip_strerror(archive.get()));
    }
  }
  if (zip_close(archive.get()) != 0) fail_writing(path, zip_strerror(archive.get()));
  archive.release();  // closed
  zip_stat_t stat;
  if (zip_source_stat(packed.get(), &stat) != 0 || zip_source_open(packed.get()) != 0) {
    fail_writing(path, zip_error_strerror(zip_source_error(packed.get())));
  }
  std::string bytes(stat.size, '\0');
  const zip_int64_t got = zip_source_read(packed.get(), bytes.data(), bytes.size());
  zip_source_close(packed.get());
  if (got != zip_int64_t(bytes.size())) fail_writing(path, "libzip returned too few bytes");
  return bytes;
}

struct Fact {
  const char* name;
  std::optional<std::string> StatisticsFacts::*value;
  bool for_comparison;
};
constexpr Fact kFacts[] = {{"data_sha256", &StatisticsFacts::data_sha256, false},
                           {"split", &StatisticsFacts::split, false},
                           {"size", &StatisticsFacts::size, true},
                           {"extractor_sha256", &StatisticsFacts::extractor_sha256, true}};

std::string difference(const Fact& fact, const StatisticsFacts& a, const StatisticsFacts& b) {
  const auto stated = [&](const StatisticsFacts& facts) {
    const auto& value = facts.*fact.value;
    return value ? "'" + *value + "'" : "not stated";
  };
  return fmt::format("{}: {} and {}", fact.name, stated(a), stated(b));
}

}  // namespace

StatisticsFile read_statistics(const std::filesystem::path& path) {
  const Reader reader(path);
  StatisticsFile file;
  file.statistics.mean = read_array(reader, "mu", at::kDouble, {-1});
  const std::int64_t d = file.statistics.mean.size(0);
  const at::Tensor sigma = read_array(reader, "sigma", at::kDouble, {d, d});
  // Allows for float32 rounding; only the lower triangle is used later.
  if (((sigma - sigma.t()).abs().max() > 1e-5 * sigma.abs().max()).item<bool>()) {
    reader.fail("sigma", "is not symmetric");
  }
  file.statistics.covariance = sigma;
  if (reader.has("count")) {
    file.statistics.count = read_array(reader, "count", at::kLong, {}).item<std::int64_t>();
    if (file.statistics.count < 2) reader.fail("count", "is below 2");
  }
  if (reader.has("features")) file.features = read_array(reader, "features", at::kFloat, {-1, d});
  for (const Fact& fact : kFacts) file.facts.*fact.value = reader.text(fact.name);
  return file;
}

void write_statistics(const std::filesystem::path& path, const StatisticsFile& file) {
  std::vector<Array> arrays{{"mu", make_npy(file.statistics.mean.to(at::kDouble))},
                            {"sigma", make_npy(file.statistics.covariance.to(at::kDouble))}};
  if (file.statistics.count > 0) {
    arrays.push_back({"count", make_npy(at::scalar_tensor(file.statistics.count, at::kLong))});
  }
  for (const Fact& fact : kFacts) {
    const auto& value = file.facts.*fact.value;
    if (value) arrays.push_back({fact.name, make_npy(*value)});
  }
  if (file.features) arrays.push_back({"features", make_npy(file.features->to(at::kFloat))});
  data::write_file_durably(path, pack(path, arrays));
}

std::vector<std::string> differences(const StatisticsFacts& a, const StatisticsFacts& b) {
  std::vector<std::string> found;
  for (const Fact& fact : kFacts) {
    if (a.*fact.value != b.*fact.value) found.push_back(difference(fact, a, b));
  }
  return found;
}

std::vector<std::string> comparison_differences(const StatisticsFile& a, const StatisticsFile& b) {
  std::vector<std::string> found;
  for (const Fact& fact : kFacts) {
    const auto &of_a = a.facts.*fact.value, &of_b = b.facts.*fact.value;
    if (fact.for_comparison && of_a && of_b && of_a != of_b) {
      found.push_back(difference(fact, a.facts, b.facts));
    }
  }
  const std::int64_t d_a = a.statistics.mean.size(0), d_b = b.statistics.mean.size(0);
  if (d_a != d_b) found.push_back(fmt::format("dimension: {} and {}", d_a, d_b));
  return found;
}

}  // namespace laterna::monitoring
