// Where a rank computes: ranks of a host take its GPUs in turn; where there is none, the CPU. Which
// GPUs a program sees is CUDA's own setting (CUDA_VISIBLE_DEVICES; empty: the CPU).
#pragma once

#include <c10/core/Device.h>

#include <cstdint>
#include <string>

#include "dist/cuda_backend.h"

namespace laterna::dist {

class Device {
 public:
  /// The CPU.
  Device() = default;
  /// GPU `local_rank` modulo the number of GPUs that this process sees; the CPU where it sees none,
  /// or where the program was built without the CUDA toolkit. Call it before the first tensor.
  /// Throws std::runtime_error when there is a GPU but its library cannot be opened.
  static Device open(int local_rank);

  at::Device torch() const { return torch_; }
  bool is_cuda() const { return torch_.is_cuda(); }
  /// GPUs that this process sees, used or not.
  int gpus() const { return gpus_; }
  /// For people: which it is, and why not a GPU where there is one.
  std::string description() const;
  /// Null on the CPU.
  const CudaBackend* cuda() const { return cuda_; }

 private:
  at::Device torch_{at::kCPU};
  int gpus_ = 0;
  const CudaBackend* cuda_ = nullptr;
};

}  // namespace laterna::dist
