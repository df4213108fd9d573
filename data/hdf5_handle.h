// Shared by the files that implement Hdf5File: owned handles, and what HDF5 says when a call fails.
// Not for others.
#pragma once

#include <fmt/core.h>
#include <hdf5.h>

#include <filesystem>
#include <string>
#include <string_view>
#include <utility>

#include "data/error.h"

namespace laterna::data {

// To be called before anything else of HDF5. Its printing is switched off for each thread
// separately, and for good: this is the only user. Its clean-up at exit is switched off for the
// process: HDF5 1.10 crashes in it when the disk was full at a close, and every file of ours is
// closed by its owner anyway.
inline void prepare_this_thread() {
  static const bool no_clean_up = H5dont_atexit() >= 0;
  thread_local const bool silent = H5Eset_auto2(H5E_DEFAULT, nullptr, nullptr) >= 0;
  (void)no_clean_up;
  (void)silent;
}

// Why the last call failed: the innermost description, shortened to the system's words if it has
// them.
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
  return reason.empty() ? "HDF5 gives no reason" : reason;
}

// An HDF5 handle and how to close it. Negative: the call failed; the owner decides what that means.
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
