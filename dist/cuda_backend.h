// The interface of liblaterna_cuda.so, the CUDA and NCCL half of Laterna. The program links only
// against LibTorch's CPU half, so that it starts quickly and runs without CUDA; on a host with GPUs
// dist/device.cpp opens this library. Opening it also registers the CUDA implementations of
// Laterna's operators (model/spiking/spikes.cpp) with LibTorch's dispatcher.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <string>

#include "dist/comm/communicator.h"

namespace laterna::dist {

/// An ncclUniqueId: created by one rank of a communicator and sent to all its ranks before they
/// join.
using NcclId = std::array<std::uint8_t, 128>;

struct CudaBackend {
  /// Makes this process compute on GPU `device` from now on, with deterministic operators. Throws
  /// c10::Error when the GPU cannot be used.
  void (*select)(int device);
  std::string (*name)(int device);
  /// Returns the number of free bytes on the selected GPU.
  std::int64_t (*free_memory)();
  NcclId (*make_nccl_id)();
  /// Returns NCCL's version, such as "2.28.9".
  std::string (*nccl_version)();
  /// Joins a communicator of `size` ranks as `rank`. Collective over these ranks. Throws
  /// std::runtime_error naming the operation, the rank and NCCL's reason.
  std::unique_ptr<Communicator> (*join_nccl)(const NcclId& id, int rank, int size);
};

/// The name under which the library exports a function that returns its CudaBackend.
inline constexpr const char* kCudaBackendSymbol = "laterna_cuda_backend";

}  // namespace laterna::dist
