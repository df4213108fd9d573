// The two ways in which data fails. InputError: what was given cannot be used, and the user must
// bring other data. WriteError: what was to be kept could not be kept, and the user must make room
// or choose another place. Both messages name the file and say what to do; the program's exit
// status tells them apart (3 for InputError).
#pragma once

#include <stdexcept>

namespace laterna::data {

/// Bad input data: missing, truncated, foreign, inconsistent. Exit status 3.
struct InputError : std::runtime_error {
  using std::runtime_error::runtime_error;
};

/// Output that could not be written: no space, no permission, no such folder.
struct WriteError : std::runtime_error {
  using std::runtime_error::runtime_error;
};

}  // namespace laterna::data
