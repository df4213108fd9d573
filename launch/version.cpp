#include "launch/version.h"

#include <fmt/format.h>
#include <torch/headeronly/version.h>

#include "commit.h"
#include "data/files/hdf5_file.h"
#include "dist/world.h"
#include "model/kernels/cpu/kernels.h"

namespace laterna::launch {

std::string version() { return fmt::format("{} ({})", LATERNA_VERSION, kCommit); }

std::string torch_version() { return TORCH_VERSION; }

std::string all_versions() {
  return fmt::format("laterna {}\nLibTorch {}\n{}\nHDF5 {}\nCPU kernels {}", version(),
                     torch_version(), dist::mpi_version(), data::hdf5_version(),
                     kernels::kernels<float>().instruction_set);
}

}  // namespace laterna::launch
