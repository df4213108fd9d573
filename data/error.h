// The two kinds of data errors. InputError: the given data cannot be used, and the user must supply
// other data. WriteError: output could not be stored, and the user must free space or choose
// another path. Messages of both name the file and say what to do; the program's exit status tells
// them apart (3 for InputError).
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
