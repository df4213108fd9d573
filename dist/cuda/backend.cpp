// The entry point of liblaterna_cuda.so.
#include <ATen/Context.h>
#include <ATen/cuda/CUDAContext.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAFunctions.h>
#include <nccl.h>

#include <algorithm>
#include <cstdlib>
#include <stdexcept>

#include "dist/cuda/nccl_communicator.h"

namespace laterna::dist {
namespace {

void select(int device) {
  // The same program must give the same bits (spec section 5). cuBLAS reads this variable when it
  // is first used.
  setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8", 0);
  at::globalContext().setDeterministicAlgorithms(true, false);
  at::globalContext().setDeterministicFillUninitializedMemory(false);
  c10::cuda::set_device(static_cast<c10::DeviceIndex>(device));
  C10_CUDA_CHECK(cudaFree(nullptr));  // opens the GPU, so that its errors appear here
}

std::string name(int device) { return at::cuda::getDeviceProperties(device)->name; }

std::int64_t free_memory() {
  std::size_t free = 0, total = 0;
  C10_CUDA_CHECK(cudaMemGetInfo(&free, &total));
  return static_cast<std::int64_t>(free);
}

NcclId make_nccl_id() {
  ncclUniqueId unique;
  const ncclResult_t result = ncclGetUniqueId(&unique);
  if (result != ncclSuccess) {
    throw std::runtime_error(std::string("NCCL cannot create an id: ") +
                             ncclGetErrorString(result) + " (" + ncclGetLastError(nullptr) + ")");
  }
  NcclId id;
  std::copy_n(reinterpret_cast<const std::uint8_t*>(unique.internal), id.size(), id.begin());
  return id;
}

std::string nccl_version() {
  int version = 0;  // 22809 is 2.28.9
  ncclGetVersion(&version);
  return std::to_string(version / 10000) + "." + std::to_string(version / 100 % 100) + "." +
         std::to_string(version % 100);
}

std::unique_ptr<Communicator> join_nccl(const NcclId& id, int rank, int size) {
  return std::make_unique<NcclCommunicator>(id, rank, size);
}

}  // namespace
}  // namespace laterna::dist

extern "C" const laterna::dist::CudaBackend* laterna_cuda_backend() {
  using namespace laterna::dist;
  static const CudaBackend backend{select,       name,         free_memory,
                                   make_nccl_id, nccl_version, join_nccl};
  return &backend;
}
