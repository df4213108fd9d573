// The device that a rank computes on: the ranks of a host take its GPUs in turn; without a GPU, the
// CPU. Which GPUs a program sees is CUDA's own setting (CUDA_VISIBLE_DEVICES; empty: the CPU).
#pragma once

#include <c10/core/Device.h>

#include <cstdint>
#include <string>

#include "dist/cuda_backend.h"

namespace laterna::dist {

class Device {
 public:
  /// Selects the CPU.
  Device() = default;
  /// Selects GPU `local_rank` modulo the number of GPUs that this process sees; the CPU where it
  /// sees none, or where the program was built without the CUDA toolkit. Call it before the first
  /// tensor is created. Throws std::runtime_error when there is a GPU but liblaterna_cuda.so cannot
  /// be opened.
  static Device open(int local_rank);

  at::Device torch() const { return torch_; }
  bool is_cuda() const { return torch_.is_cuda(); }
  /// The number of GPUs that this process sees, used or not.
  int gpus() const { return gpus_; }
  /// Returns a description for people: which device it is, and why not a GPU where there is one.
  std::string description() const;
  /// The CUDA back end; null on the CPU.
  const CudaBackend* cuda() const { return cuda_; }

 private:
  at::Device torch_{at::kCPU};
  int gpus_ = 0;
  const CudaBackend* cuda_ = nullptr;
};

}  // namespace laterna::dist
