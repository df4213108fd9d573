// Hdf5File on HDF5's C interface. Handle owns each HDF5 handle. Every call that fails becomes an
// exception with HDF5's innermost error description, or the system's reason if HDF5 gives one.
#include "data/files/hdf5_file.h"

#include <algorithm>
#include <array>
#include <utility>

#include "data/files/hdf5_handle.h"

namespace laterna::data {
namespace {

constexpr std::array<std::pair<Type, std::string_view>, 5> kNames = {{{Type::uint8, "uint8"},
                                                                      {Type::int32, "int32"},
                                                                      {Type::int64, "int64"},
                                                                      {Type::float32, "float32"},
                                                                      {Type::float64, "float64"}}};

hid_t memory_type(Type type) {
  switch (type) {
    case Type::uint8:
      return H5T_NATIVE_UINT8;
    case Type::int32:
      return H5T_NATIVE_INT32;
    case Type::int64:
      return H5T_NATIVE_INT64;
    case Type::float32:
      return H5T_NATIVE_FLOAT;
    case Type::float64:
      return H5T_NATIVE_DOUBLE;
  }
  throw std::invalid_argument("not a Type");
}

Handle dataspace(const Shape& shape) {
  const std::vector<hsize_t> dims(shape.begin(), shape.end());
  return {shape.empty() ? H5Screate(H5S_SCALAR)
                        : H5Screate_simple(static_cast<int>(dims.size()), dims.data(), nullptr),
          H5Sclose};
}

Shape shape_of(hid_t space) {
  const int rank = H5Sget_simple_extent_ndims(space);
  if (rank <= 0) return {};
  std::vector<hsize_t> dims(static_cast<std::size_t>(rank));
  H5Sget_simple_extent_dims(space, dims.data(), nullptr);
  return {dims.begin(), dims.end()};
}

// Checks each prefix of the path in turn, because H5Lexists fails on a missing group.
bool link_exists(hid_t file, const std::string& name) {
  for (std::size_t slash = name.find('/', 1);; slash = name.find('/', slash + 1)) {
    const std::string part = name.substr(0, slash);
    if (part.find_first_not_of('/') != std::string::npos &&
        H5Lexists(file, part.c_str(), H5P_DEFAULT) <= 0) {
      return false;
    }
    if (slash == std::string::npos) break;
  }
  return H5Oexists_by_name(file, name.c_str(), H5P_DEFAULT) > 0;
}

Handle open_dataset(hid_t file, const std::filesystem::path& path, const std::string& name) {
  prepare_this_thread();
  if (file < 0) throw std::logic_error(path.string() + ": used after close()");
  if (!link_exists(file, name)) {
    input_error(path, name, "is not in this file; is this the right file?");
  }
  Handle set(H5Dopen2(file, name.c_str(), H5P_DEFAULT), H5Dclose);
  if (!set.good()) input_error(path, name, "is not a data set: " + last_reason());
  return set;
}

// Selects rows [first, first + count) of `space` and returns the matching memory dataspace.
Handle select_rows(hid_t space, const std::filesystem::path& path, const std::string& name,
                   std::int64_t first, std::int64_t count) {
  const Shape shape = shape_of(space);
  if (shape.empty() || first < 0 || count < 0 || first + count > shape[0]) {
    input_error(path, name, fmt::format("has no rows {} to {}", first, first + count - 1));
  }
  std::vector<hsize_t> start(shape.size(), 0), extent(shape.begin(), shape.end());
  start[0] = static_cast<hsize_t>(first);
  extent[0] = static_cast<hsize_t>(count);
  H5Sselect_hyperslab(space, H5S_SELECT_SET, start.data(), nullptr, extent.data(), nullptr);
  Shape memory = shape;
  memory[0] = count;
  return dataspace(memory);
}

}  // namespace

std::string hdf5_version() {
  unsigned major = 0, minor = 0, release = 0;
  H5get_libversion(&major, &minor, &release);
  return std::to_string(major) + "." + std::to_string(minor) + "." + std::to_string(release);
}

std::size_t size_of(Type type) {
  switch (type) {
    case Type::uint8:
      return 1;
    case Type::int32:
    case Type::float32:
      return 4;
    case Type::int64:
    case Type::float64:
      return 8;
  }
  throw std::invalid_argument("not a Type");
}

std::string_view name_of(Type type) {
  return std::find_if(kNames.begin(), kNames.end(), [type](auto& n) { return n.first == type; })
      ->second;
}

std::int64_t DatasetInfo::elements() const {
  std::int64_t product = 1;
  for (const std::int64_t extent : shape) product *= extent;
  return product;
}

namespace {

/// Returns access properties without HDF5's own locks, which file systems without locks refuse. No
/// two programs write one of our files: see folder_lock.h.
Handle without_locks() {
  Handle access(H5Pcreate(H5P_FILE_ACCESS), H5Pclose);
  H5Pset_file_locking(access.get(), false, true);
  return access;
}

}  // namespace

Hdf5File Hdf5File::create(const std::filesystem::path& path) {
  prepare_this_thread();
  const Handle access = without_locks();  // lives on, because closing it clears HDF5's errors
  const hid_t file = H5Fcreate(path.c_str(), H5F_ACC_TRUNC, H5P_DEFAULT, access.get());
  if (file < 0) {
    throw WriteError(fmt::format("{}: cannot be created: {}", path.string(), last_reason()));
  }
  return {path, file};
}

Hdf5File Hdf5File::open(const std::filesystem::path& path) {
  prepare_this_thread();
  const auto fail = [&path](const std::string& what) {
    throw InputError(fmt::format("{}: {}", path.string(), what));
  };
  std::error_code error;
  if (!std::filesystem::exists(path, error)) fail("no such file");
  if (std::filesystem::is_directory(path, error)) fail("is a folder, not an HDF5 file");
  const Handle access = without_locks();
  const hid_t file = H5Fopen(path.c_str(), H5F_ACC_RDONLY, access.get());
  if (file < 0) {
    const std::string reason = last_reason();
    const htri_t is_hdf5 = H5Fis_hdf5(path.c_str());
    if (is_hdf5 == 0) fail("not an HDF5 file");
    if (reason.find("truncated") != std::string::npos) {
      fail("cut short (" + reason + "); copy or create it again");
    }
    fail("cannot be opened: " + reason);
  }
  return {path, file};
}

Hdf5File::~Hdf5File() {
  if (file_ >= 0) H5Fclose(file_);
}

Hdf5File::Hdf5File(Hdf5File&& other) noexcept
    : path_(std::move(other.path_)), file_(std::exchange(other.file_, -1)) {}

Hdf5File& Hdf5File::operator=(Hdf5File&& other) noexcept {
  std::swap(path_, other.path_);
  std::swap(file_, other.file_);
  return *this;
}

void Hdf5File::create_dataset(const std::string& name, Type type, const Shape& shape) {
  prepare_this_thread();
  if (file_ < 0) throw std::logic_error(path_.string() + ": used after close()");
  const Handle space = dataspace(shape);
  const Handle links(H5Pcreate(H5P_LINK_CREATE), H5Pclose);
  H5Pset_create_intermediate_group(links.get(), 1);
  const Handle layout(H5Pcreate(H5P_DATASET_CREATE), H5Pclose);
  H5Pset_layout(layout.get(), H5D_CONTIGUOUS);
  H5Pset_alloc_time(layout.get(), H5D_ALLOC_TIME_EARLY);  // offset() is known from now on
  H5Pset_fill_time(layout.get(), H5D_FILL_TIME_NEVER);
  H5Pset_obj_track_times(layout.get(), false);  // equal content gives equal bytes
  const Handle set(H5Dcreate2(file_, name.c_str(), memory_type(type), space.get(), links.get(),
                              layout.get(), H5P_DEFAULT),
                   H5Dclose);
  if (!set.good()) write_error(path_, name, last_reason());
}

void Hdf5File::write(const std::string& name, Type type, const Shape& shape, const void* data) {
  create_dataset(name, type, shape);
  const Handle set = open_dataset(file_, path_, name);
  if (H5Dwrite(set.get(), memory_type(type), H5S_ALL, H5S_ALL, H5P_DEFAULT, data) < 0) {
    write_error(path_, name, last_reason());
  }
}

void Hdf5File::write_rows(const std::string& name, std::int64_t first, std::int64_t count,
                          const void* data) {
  const Handle set = open_dataset(file_, path_, name);
  const Handle space(H5Dget_space(set.get()), H5Sclose);
  const Handle memory = select_rows(space.get(), path_, name, first, count);
  const Handle type(H5Dget_type(set.get()), H5Tclose);
  if (H5Dwrite(set.get(), type.get(), memory.get(), space.get(), H5P_DEFAULT, data) < 0) {
    write_error(path_, name, last_reason());
  }
}

bool Hdf5File::contains(const std::string& name) const {
  prepare_this_thread();
  return link_exists(file_, name);
}

DatasetInfo Hdf5File::info(const std::string& name) const {
  const Handle set = open_dataset(file_, path_, name);
  const Handle stored(H5Dget_type(set.get()), H5Tclose);
  const Handle space(H5Dget_space(set.get()), H5Sclose);
  const Shape shape = shape_of(space.get());
  for (const auto& [type, type_name] : kNames) {
    if (H5Tequal(stored.get(), memory_type(type)) > 0) return {type, true, shape};
  }
  const H5T_class_t kind = H5Tget_class(stored.get());
  const std::size_t size = H5Tget_size(stored.get());
  if (kind == H5T_FLOAT) return {size <= 4 ? Type::float32 : Type::float64, false, shape};
  // h5py stores booleans as an enumeration over int8; treat them as 1-byte integers.
  if (kind == H5T_INTEGER || kind == H5T_ENUM) {
    return {size <= 2 ? Type::int32 : Type::int64, false, shape};
  }
  input_error(path_, name, "does not hold numbers");
}

std::vector<std::string> Hdf5File::datasets(const std::string& group) const {
  prepare_this_thread();
  std::vector<std::string> names;
  if (group != "/" && !link_exists(file_, group)) return names;
  const Handle folder(H5Gopen2(file_, group.c_str(), H5P_DEFAULT), H5Gclose);
  if (!folder.good()) input_error(path_, group, "is not a group");
  const auto collect = [](hid_t at, const char* name, const H5L_info_t*, void* out) -> herr_t {
    const Handle object(H5Oopen(at, name, H5P_DEFAULT), H5Oclose);
    if (object.good() && H5Iget_type(object.get()) == H5I_DATASET) {
      static_cast<std::vector<std::string>*>(out)->emplace_back(name);
    }
    return 0;
  };
  if (H5Literate(folder.get(), H5_INDEX_NAME, H5_ITER_INC, nullptr, collect, &names) < 0) {
    input_error(path_, group, "cannot be listed: " + last_reason());
  }
  return names;
}

void Hdf5File::read(const std::string& name, Type type, void* out) const {
  info(name);  // throws if the elements are not numbers
  const Handle set = open_dataset(file_, path_, name);
  if (H5Dread(set.get(), memory_type(type), H5S_ALL, H5S_ALL, H5P_DEFAULT, out) < 0) {
    input_error(path_, name, "cannot be read: " + last_reason());
  }
}

void Hdf5File::read_rows(const std::string& name, std::int64_t first, std::int64_t count, Type type,
                         void* out) const {
  info(name);
  const Handle set = open_dataset(file_, path_, name);
  const Handle space(H5Dget_space(set.get()), H5Sclose);
  const Handle memory = select_rows(space.get(), path_, name, first, count);
  if (H5Dread(set.get(), memory_type(type), memory.get(), space.get(), H5P_DEFAULT, out) < 0) {
    input_error(path_, name, "cannot be read: " + last_reason());
  }
}

std::int64_t Hdf5File::offset(const std::string& name, Type type) const {
  const DatasetInfo stored = info(name);
  if (!stored.exact || stored.type != type) {
    input_error(path_, name, fmt::format("is not stored as {}", name_of(type)));
  }
  const Handle set = open_dataset(file_, path_, name);
  const Handle layout(H5Dget_create_plist(set.get()), H5Pclose);
  const haddr_t address = H5Dget_offset(set.get());
  if (H5Pget_layout(layout.get()) != H5D_CONTIGUOUS || address == HADDR_UNDEF) {
    input_error(path_, name, "is not stored contiguously and uncompressed");
  }
  return static_cast<std::int64_t>(address);
}

void Hdf5File::close() {
  if (file_ < 0) return;
  prepare_this_thread();
  const hid_t file = std::exchange(file_, -1);
  const bool flushed = H5Fflush(file, H5F_SCOPE_LOCAL) >= 0;
  const std::string reason = flushed ? "" : last_reason();
  const bool closed = H5Fclose(file) >= 0;
  if (!flushed || !closed) {
    throw WriteError(fmt::format("{}: not everything could be written: {}", path_.string(),
                                 flushed ? last_reason() : reason));
  }
}

}  // namespace laterna::data
