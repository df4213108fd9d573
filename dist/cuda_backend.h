// What liblaterna_cuda.so offers: the CUDA and NCCL half of Laterna. The program links against
// LibTorch's CPU half alone, so that it starts quickly and runs where there is no CUDA; on a host
// with GPUs dist/device.cpp opens this library. Opening it also registers the CUDA versions of our
// own operators (dist/bit_packing.h) with LibTorch's dispatcher.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <string>

#include "dist/communicator.h"

namespace laterna::dist {

/// An ncclUniqueId: made by one rank of a communicator, known to all before they join it.
using NcclId = std::array<std::uint8_t, 128>;

struct CudaBackend {
  /// This process computes on GPU `device` from now on, with deterministic operators. Throws
  /// c10::Error when the GPU cannot be used.
  void (*select)(int device);
  std::string (*name)(int device);
  /// Bytes that are free on the selected GPU.
  std::int64_t (*free_memory)();
  NcclId (*make_nccl_id)();
  /// Such as "2.28.9".
  std::string (*nccl_version)();
  /// Collective over `size` ranks. Throws std::runtime_error naming operation, rank and NCCL's
  /// reason.
  std::unique_ptr<Communicator> (*join_nccl)(const NcclId& id, int rank, int size);
};

/// The name under which the library exports a function that returns its CudaBackend.
inline constexpr const char* kCudaBackendSymbol = "laterna_cuda_backend";

}  // namespace laterna::dist
