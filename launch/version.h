// Which program this is, and what it runs on.
#pragma once

#include <string>

namespace laterna::launch {

/// Returns the version with the commit that the program was built from, such as "0.1.0
/// (3f2c1a9b0d4e)"; the commit of a changed tree ends in "-dirty", and it is "unknown" without git.
std::string version();

/// Returns LibTorch's version.
std::string torch_version();

/// Returns version() and the versions of LibTorch, MPI and HDF5 and the CPU kernels in use, in
/// lines.
std::string all_versions();

}  // namespace laterna::launch
