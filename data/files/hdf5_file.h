// The only interface to HDF5: data shards, checkpoints, exports and features all use it. A file is
// either created (for writing) or opened (for reading). Data sets are written contiguous and
// uncompressed, so that callers can read them without HDF5 (offset()). Names are paths
// ("gradient/blocks.0.time.weight": slashes separate groups, dots have no meaning), and missing
// groups are created. HDF5 takes one global lock: use from several threads is safe, but not
// parallel. Its own error printing is off; the exceptions carry its error descriptions.
//
// Errors: InputError (missing, foreign or truncated file, missing object, other type or shape);
// WriteError when something cannot be created or written, with the system's reason ("No space left
// on device").
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <string_view>
#include <vector>

namespace laterna::data {

using Shape = std::vector<std::int64_t>;

/// Element types of Laterna's files. Hdf5File::read() converts numbers between them.
enum class Type { uint8, int32, int64, float32, float64 };

std::size_t size_of(Type type);
std::string_view name_of(Type type);
template <typename T>
constexpr Type type_of();
template <>
constexpr Type type_of<std::uint8_t>() {
  return Type::uint8;
}
template <>
constexpr Type type_of<std::int32_t>() {
  return Type::int32;
}
template <>
constexpr Type type_of<std::int64_t>() {
  return Type::int64;
}
template <>
constexpr Type type_of<float>() {
  return Type::float32;
}
template <>
constexpr Type type_of<double>() {
  return Type::float64;
}

/// Type and shape of a data set. `exact`: the elements are stored as `type`; otherwise `type` is
/// the nearest one that holds them (other software may store int16, big-endian numbers or
/// booleans).
struct DatasetInfo {
  Type type;
  bool exact;
  Shape shape;  // empty: a scalar
  std::int64_t elements() const;
};

/// Returns the version of the HDF5 library, such as "1.10.8".
std::string hdf5_version();

/// An open HDF5 file; movable. The destructor closes the file and ignores errors: a writer calls
/// close() to learn whether everything was written.
class Hdf5File {
 public:
  /// Creates a file for writing, in place of any old one.
  static Hdf5File create(const std::filesystem::path& path);
  /// Opens a file for reading only.
  static Hdf5File open(const std::filesystem::path& path);
  ~Hdf5File();
  Hdf5File(Hdf5File&& other) noexcept;
  Hdf5File& operator=(Hdf5File&& other) noexcept;

  /// Creates and writes a whole data set; `data` holds the elements of `shape`, row-major.
  void write(const std::string& name, Type type, const Shape& shape, const void* data);
  template <typename T>
  void write(const std::string& name, const Shape& shape, const T* data) {
    write(name, type_of<T>(), shape, data);
  }
  /// Creates a data set to be filled by write_rows(), for data too large to hold in memory. Rows
  /// that are never written are undefined.
  void create_dataset(const std::string& name, Type type, const Shape& shape);
  /// Writes rows first..first+count-1 (first dimension) from `data`, whose elements have the type
  /// that the data set was created with.
  void write_rows(const std::string& name, std::int64_t first, std::int64_t count,
                  const void* data);

  bool contains(const std::string& name) const;
  DatasetInfo info(const std::string& name) const;
  /// Returns the names of the data sets directly in `group`, in name order; empty when there is no
  /// such group.
  std::vector<std::string> datasets(const std::string& group = "/") const;
  /// Reads the whole data set to `out`, converted to `type`.
  void read(const std::string& name, Type type, void* out) const;
  void read_rows(const std::string& name, std::int64_t first, std::int64_t count, Type type,
                 void* out) const;
  /// Returns the whole data set, row-major, converted to T.
  template <typename T>
  std::vector<T> read(const std::string& name) const {
    std::vector<T> values(static_cast<std::size_t>(info(name).elements()));
    read(name, type_of<T>(), values.data());
    return values;
  }
  /// Returns the offset in bytes of the data set in the file. Throws InputError when the data set
  /// cannot be read that way: not contiguous, or not stored as exactly `type` in this machine's
  /// byte order.
  std::int64_t offset(const std::string& name, Type type) const;

  /// Attributes of `object` ("/" is the file itself). Strings of fixed and of variable length and
  /// integers of any width can be read.
  void set_attribute(const std::string& object, const std::string& key, std::string_view value);
  void set_attribute(const std::string& object, const std::string& key, std::int64_t value);
  bool has_attribute(const std::string& object, const std::string& key) const;
  std::string string_attribute(const std::string& object, const std::string& key) const;
  std::int64_t integer_attribute(const std::string& object, const std::string& key) const;

  /// Flushes and closes the file. Throws WriteError when not everything was written. Does not
  /// fsync: see durable_file.h. A second call does nothing.
  void close();

  const std::filesystem::path& path() const { return path_; }

 private:
  Hdf5File(std::filesystem::path path, std::int64_t file) : path_(std::move(path)), file_(file) {}

  std::filesystem::path path_;
  std::int64_t file_;  // HDF5's handle; negative: closed
};

}  // namespace laterna::data
