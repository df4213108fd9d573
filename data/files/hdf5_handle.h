// Shared by the files that implement Hdf5File, and internal to them: owned HDF5 handles and the
// reason for a failed HDF5 call.
#pragma once

#include <fmt/core.h>
#include <hdf5.h>

#include <filesystem>
#include <string>
#include <string_view>
#include <utility>

#include "data/error.h"

namespace laterna::data {

// Must be called before any other HDF5 call. It switches off HDF5's error printing, per thread and
// for good, since this code is the only user of HDF5. It also switches off HDF5's clean-up at exit
// for the process: HDF5 1.10 crashes there if the disk was full at a close, and every file is
// closed by its owner anyway.
inline void prepare_this_thread() {
  static const bool no_clean_up = H5dont_atexit() >= 0;
  thread_local const bool silent = H5Eset_auto2(H5E_DEFAULT, nullptr, nullptr) >= 0;
  (void)no_clean_up;
  (void)silent;
}

// Returns why the last HDF5 call failed: the innermost error description, shortened to the system's
// message if it contains one.
inline std::string last_reason() {
  std::string reason;
  const auto keep_first = [](unsigned, const H5E_error2_t* error, void* out) -> herr_t {
    auto& text = *static_cast<std::string*>(out);
    if (text.empty() && error->desc) text = error->desc;
    return 0;
  };
  H5Ewalk2(H5E_DEFAULT, H5E_WALK_UPWARD, keep_first, &reason);
  constexpr std::string_view kMark = "error message = '";
  if (const auto start = reason.find(kMark); start != std::string::npos) {
    reason = reason.substr(start + kMark.size());
    reason = reason.substr(0, reason.find('\''));
  }
  return reason.empty() ? "HDF5 gave no reason" : reason;
}

// Owns an HDF5 handle and closes it with `close`. A negative value means that the call that
// returned it failed; the caller checks good().
class Handle {
 public:
  using Close = herr_t (*)(hid_t);
  Handle(hid_t value, Close close) : value_(value), close_(close) {}
  ~Handle() {
    if (value_ >= 0) close_(value_);
  }
  Handle(Handle&& other) noexcept : value_(std::exchange(other.value_, -1)), close_(other.close_) {}
  Handle& operator=(Handle&&) = delete;
  hid_t get() const { return value_; }
  bool good() const { return value_ >= 0; }

 private:
  hid_t value_;
  Close close_;
};

[[noreturn]] inline void input_error(const std::filesystem::path& path, const std::string& object,
                                     const std::string& what) {
  throw InputError(fmt::format("{}: '{}': {}", path.string(), object, what));
}

[[noreturn]] inline void write_error(const std::filesystem::path& path, const std::string& object,
                                     const std::string& what) {
  throw WriteError(fmt::format("{}: '{}' cannot be written: {}", path.string(), object, what));
}

}  // namespace laterna::data
