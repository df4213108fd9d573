// The one door to HDF5: shards, checkpoints, exports and features all pass here. A file is opened
// either to be created (and written) or to be read. Data sets are contiguous and uncompressed, so
// that others can map them (offset); names are paths ("gradient/blocks.0.time.weight": the last
// slash parts, dots mean nothing), and groups on the way are made as needed. HDF5 takes one global
// lock: threads are safe, not parallel. Its own error printing is off; what it had to say is in the
// exceptions.
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

/// The element types that Laterna's files hold. Read converts numbers between them.
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

/// What a data set is. `exact`: it is stored as one of Type, namely `type`; otherwise `type` is the
/// nearest that holds it (files of other software may store int16, big-endian numbers or booleans).
struct DatasetInfo {
  Type type;
  bool exact;
  Shape shape;  // empty: a scalar
  std::int64_t elements() const;
};

/// An open HDF5 file; movable. The destructor closes without a word: a writer calls close() to
/// learn whether everything reached the file.
class Hdf5File {
 public:
  /// A new file in place of any old one.
  static Hdf5File create(const std::filesystem::path& path);
  /// Read only.
  static Hdf5File open(const std::filesystem::path& path);
  ~Hdf5File();
  Hdf5File(Hdf5File&& other) noexcept;
  Hdf5File& operator=(Hdf5File&& other) noexcept;

  /// Writes a whole data set; `data` holds as many elements as the shape says, row-major.
  void write(const std::string& name, Type type, const Shape& shape, const void* data);
  template <typename T>
  void write(const std::string& name, const Shape& shape, const T* data) {
    write(name, type_of<T>(), shape, data);
  }
  /// A data set to be filled by write_rows, for what is too big to hold. Rows never written are
  /// undefined.
  void create_dataset(const std::string& name, Type type, const Shape& shape);
  /// Rows first..first+count-1 (first dimension) from `data`, in the type that it was created with.
  void write_rows(const std::string& name, std::int64_t first, std::int64_t count,
                  const void* data);

  bool contains(const std::string& name) const;
  DatasetInfo info(const std::string& name) const;
  /// Names of the data sets directly in `group`, in name order; empty when there is no such group.
  std::vector<std::string> datasets(const std::string& group = "/") const;
  /// The whole data set, converted to `type`.
  void read(const std::string& name, Type type, void* out) const;
  void read_rows(const std::string& name, std::int64_t first, std::int64_t count, Type type,
                 void* out) const;
  /// The whole data set as a vector, row-major.
  template <typename T>
  std::vector<T> read(const std::string& name) const {
    std::vector<T> values(static_cast<std::size_t>(info(name).elements()));
    read(name, type_of<T>(), values.data());
    return values;
  }
  /// Where the data set's first byte lies in the file. InputError when it is not contiguous or not
  /// stored as exactly `type` in this machine's byte order: then it cannot be mapped.
  std::int64_t offset(const std::string& name, Type type) const;

  /// Attributes of `object` ("/" is the file itself). Strings of fixed and variable length are
  /// read; integers of any width.
  void set_attribute(const std::string& object, const std::string& key, std::string_view value);
  void set_attribute(const std::string& object, const std::string& key, std::int64_t value);
  bool has_attribute(const std::string& object, const std::string& key) const;
  std::string string_attribute(const std::string& object, const std::string& key) const;
  std::int64_t integer_attribute(const std::string& object, const std::string& key) const;

  /// Flushes and closes. Throws WriteError when not everything reached the file. (fsync is another
  /// matter: see durable_file.h.) A second call does nothing.
  void close();

  const std::filesystem::path& path() const { return path_; }

 private:
  Hdf5File(std::filesystem::path path, std::int64_t file) : path_(std::move(path)), file_(file) {}

  std::filesystem::path path_;
  std::int64_t file_;  // HDF5's handle; negative: closed
};

}  // namespace laterna::data
