// Attributes of HDF5 objects: strings and integers. Strings are written in UTF-8 with fixed length;
// strings of variable length, which most other software writes, can be read as well.
#include <algorithm>

#include "data/files/hdf5_file.h"
#include "data/files/hdf5_handle.h"

namespace laterna::data {
namespace {

Handle open_attribute(hid_t file, const std::filesystem::path& path, const std::string& object,
                      const std::string& key) {
  prepare_this_thread();
  if (file < 0) throw std::logic_error(path.string() + ": used after close()");
  Handle attribute(H5Aopen_by_name(file, object.c_str(), key.c_str(), H5P_DEFAULT, H5P_DEFAULT),
                   H5Aclose);
  if (!attribute.good()) {
    input_error(path, object, fmt::format("has no attribute '{}'; is this the right file?", key));
  }
  return attribute;
}

void write_attribute(hid_t file, const std::filesystem::path& path, const std::string& object,
                     const std::string& key, hid_t type, const void* value) {
  prepare_this_thread();
  if (file < 0) throw std::logic_error(path.string() + ": used after close()");
  if (H5Aexists_by_name(file, object.c_str(), key.c_str(), H5P_DEFAULT) > 0) {
    H5Adelete_by_name(file, object.c_str(), key.c_str(), H5P_DEFAULT);
  }
  const Handle space(H5Screate(H5S_SCALAR), H5Sclose);
  const Handle attribute(H5Acreate_by_name(file, object.c_str(), key.c_str(), type, space.get(),
                                           H5P_DEFAULT, H5P_DEFAULT, H5P_DEFAULT),
                         H5Aclose);
  if (!attribute.good() || H5Awrite(attribute.get(), type, value) < 0) {
    write_error(path, object + "@" + key, last_reason());
  }
}

}  // namespace

void Hdf5File::set_attribute(const std::string& object, const std::string& key,
                             std::string_view value) {
  prepare_this_thread();
  // HDF5 has no strings of length zero: an empty string is stored as one zero byte.
  std::string text(value);
  text.resize(std::max<std::size_t>(1, text.size()));
  const Handle type(H5Tcopy(H5T_C_S1), H5Tclose);
  H5Tset_size(type.get(), text.size());
  H5Tset_strpad(type.get(), H5T_STR_NULLPAD);
  H5Tset_cset(type.get(), H5T_CSET_UTF8);
  write_attribute(file_, path_, object, key, type.get(), text.data());
}

void Hdf5File::set_attribute(const std::string& object, const std::string& key,
                             std::int64_t value) {
  write_attribute(file_, path_, object, key, H5T_NATIVE_INT64, &value);
}

bool Hdf5File::has_attribute(const std::string& object, const std::string& key) const {
  prepare_this_thread();
  return H5Aexists_by_name(file_, object.c_str(), key.c_str(), H5P_DEFAULT) > 0;
}

std::string Hdf5File::string_attribute(const std::string& object, const std::string& key) const {
  const Handle attribute = open_attribute(file_, path_, object, key);
  const Handle type(H5Aget_type(attribute.get()), H5Tclose);
  if (H5Tget_class(type.get()) != H5T_STRING) {
    input_error(path_, object, fmt::format("attribute '{}' is not a string", key));
  }
  if (H5Tis_variable_str(type.get()) > 0) {
    char* text = nullptr;
    if (H5Aread(attribute.get(), type.get(), &text) < 0 || text == nullptr) {
      input_error(path_, object, fmt::format("attribute '{}' cannot be read", key));
    }
    std::string value(text);
    H5free_memory(text);
    return value;
  }
  std::string value(H5Tget_size(type.get()), '\0');
  if (H5Aread(attribute.get(), type.get(), value.data()) < 0) {
    input_error(path_, object, fmt::format("attribute '{}' cannot be read", key));
  }
  return value.substr(0, value.find('\0'));
}

std::int64_t Hdf5File::integer_attribute(const std::string& object, const std::string& key) const {
  const Handle attribute = open_attribute(file_, path_, object, key);
  const Handle type(H5Aget_type(attribute.get()), H5Tclose);
  const Handle space(H5Aget_space(attribute.get()), H5Sclose);
  std::int64_t value = 0;
  if (H5Tget_class(type.get()) != H5T_INTEGER || H5Sget_simple_extent_npoints(space.get()) != 1 ||
      H5Aread(attribute.get(), H5T_NATIVE_INT64, &value) < 0) {
    input_error(path_, object, fmt::format("attribute '{}' is not an integer", key));
  }
  return value;
}

}  // namespace laterna::data
