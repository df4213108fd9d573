#include "dist/cuda/nccl_communicator.h"

#include <ATen/ATen.h>
#include <ATen/cuda/CUDAContext.h>
#include <c10/cuda/CUDAException.h>
#include <fmt/format.h>

#include <cstdio>
#include <cstdlib>
#include <exception>
#include <numeric>
#include <stdexcept>
#include <thread>

#include "dist/comm/collective_arguments.h"

namespace laterna::dist {
namespace {

class NcclWork final : public Work {
 public:
  NcclWork(NcclCommunicator& owner, const char* operation, std::vector<at::Tensor> kept,
           const c10::cuda::CUDAStream& stream)
      : owner_(owner), operation_(operation), kept_(std::move(kept)) {
    done_.record(stream);
  }
  ~NcclWork() override {
    if (finished_ || done_.query()) return;
    if (std::uncaught_exceptions() == 0) {
      fmt::print(stderr, "rank {}: {} was destroyed before it was done: call wait() first\n",
                 owner_.rank(), operation_);
      std::abort();
    }
    // An exception is unwinding and the GPU may still use these tensors, so they are never freed.
    static_cast<void>(new std::vector<at::Tensor>(std::move(kept_)));
  }
  bool test() override {
    if (finished_) return true;
    owner_.check_health(operation_);
    if (!done_.query()) return false;
    finish();
    return true;
  }
  void wait() override {
    if (finished_) return;
    owner_.check_health(operation_);
    done_.block(at::cuda::getCurrentCUDAStream());
    finish();
  }

 private:
  // Memory freed from here on is reused only by the current stream, and so behind the event.
  void finish() {
    finished_ = true;
    kept_.clear();
  }

  NcclCommunicator& owner_;
  const char* operation_;
  std::vector<at::Tensor> kept_;
  at::cuda::CUDAEvent done_;
  bool finished_ = false;
};

ncclDataType_t type_of(const at::Tensor& tensor) {
  switch (tensor.scalar_type()) {
    case at::kFloat:
      return ncclFloat32;
    case at::kDouble:
      return ncclFloat64;
    default:
      return ncclInt64;  // check_all_reduce allows no other dtype
  }
}

std::byte* bytes_of(const at::Tensor& tensor) {
  return static_cast<std::byte*>(tensor.mutable_data_ptr());
}

}  // namespace

NcclCommunicator::NcclCommunicator(const NcclId& id, int rank, int size)
    : rank_(rank), size_(size), stream_(c10::cuda::getStreamFromPool(true)) {
  static_assert(sizeof(ncclUniqueId) == sizeof(NcclId));
  ncclUniqueId unique;
  std::copy(id.begin(), id.end(), reinterpret_cast<std::uint8_t*>(unique.internal));
  ncclConfig_t config = NCCL_CONFIG_INITIALIZER;
  config.blocking = 0;
  check(ncclCommInitRankConfig(&communicator_, size, unique, rank, &config), "joining NCCL");
  settle("joining NCCL");
}

NcclCommunicator::~NcclCommunicator() {
  if (std::uncaught_exceptions() == 0) static_cast<void>(cudaStreamSynchronize(stream_));
  ncclCommAbort(communicator_);
}

void NcclCommunicator::check(ncclResult_t result, const char* operation) const {
  if (result == ncclSuccess || result == ncclInProgress) return;
  throw std::runtime_error(fmt::format("{} failed on rank {} of {}: NCCL: {} ({})", operation,
                                       rank_, size_, ncclGetErrorString(result),
                                       ncclGetLastError(communicator_)));
}

void NcclCommunicator::check_health(const char* operation) {
  ncclResult_t state = ncclSuccess;
  check(ncclCommGetAsyncError(communicator_, &state), operation);
  check(state, operation);
}

void NcclCommunicator::settle(const char* operation) {
  ncclResult_t state = ncclInProgress;
  while (true) {
    check(ncclCommGetAsyncError(communicator_, &state), operation);
    check(state, operation);
    if (state == ncclSuccess) return;
    std::this_thread::yield();
  }
}

std::unique_ptr<Work> NcclCommunicator::launch(const char* operation,
                                               std::vector<at::Tensor> tensors,
                                               const std::function<void(cudaStream_t)>& post) {
  for (const at::Tensor& tensor : tensors) {
    if (tensor.device() == device()) continue;
    throw std::invalid_argument(
        fmt::format("{}: this rank's NCCL communicator moves tensors on {}, not on {}", operation,
                    device().str(), tensor.device().str()));
  }
  at::cuda::CUDAEvent ready;
  ready.record(at::cuda::getCurrentCUDAStream());
  ready.block(stream_);
  check(ncclGroupStart(), operation);
  post(stream_);
  check(ncclGroupEnd(), operation);
  settle(operation);
  return std::make_unique<NcclWork>(*this, operation, std::move(tensors), stream_);
}

std::unique_ptr<Work> NcclCommunicator::all_reduce(const at::Tensor& tensor) {
  check_all_reduce(tensor);
  return launch("all_reduce", {tensor}, [&](cudaStream_t stream) {
    void* values = tensor.mutable_data_ptr();
    check(ncclAllReduce(values, values, static_cast<std::size_t>(tensor.numel()), type_of(tensor),
                        ncclSum, communicator_, stream),
          "all_reduce");
  });
}

std::unique_ptr<Work> NcclCommunicator::all_gather(const at::Tensor& mine, const at::Tensor& all) {
  check_all_gather(mine, all, size_);
  return launch("all_gather", {mine, all}, [&](cudaStream_t stream) {
    check(ncclAllGather(mine.const_data_ptr(), all.mutable_data_ptr(), mine.nbytes(), ncclUint8,
                        communicator_, stream),
          "all_gather");
  });
}

std::unique_ptr<Work> NcclCommunicator::all_to_all_v(const at::Tensor& send,
                                                     std::span<const std::int64_t> send_rows,
                                                     const at::Tensor& receive,
                                                     std::span<const std::int64_t> receive_rows) {
  check_all_to_all_v(send, send_rows, receive, receive_rows, size_);
  check_own_rows(send_rows, receive_rows, rank_);
  const std::int64_t row = row_bytes(send);
  return launch("all_to_all_v", {send, receive}, [&](cudaStream_t stream) {
    const std::byte* out = bytes_of(send);
    std::byte* in = bytes_of(receive);
    for (int peer = 0; peer < size_; ++peer) {
      const auto leaving = static_cast<std::size_t>(send_rows[peer] * row);
      const auto coming = static_cast<std::size_t>(receive_rows[peer] * row);
      if (peer == rank_) {
        if (leaving > 0) {
          C10_CUDA_CHECK(cudaMemcpyAsync(in, out, leaving, cudaMemcpyDeviceToDevice, stream));
        }
      } else {
        if (leaving > 0) {
          check(ncclSend(out, leaving, ncclUint8, peer, communicator_, stream), "all_to_all_v");
        }
        if (coming > 0) {
          check(ncclRecv(in, coming, ncclUint8, peer, communicator_, stream), "all_to_all_v");
        }
      }
      out += leaving;
      in += coming;
    }
  });
}

std::unique_ptr<Work> NcclCommunicator::broadcast(const at::Tensor& tensor, int root) {
  check_broadcast(tensor, root, size_);
  return launch("broadcast", {tensor}, [&](cudaStream_t stream) {
    void* bytes = tensor.mutable_data_ptr();
    check(ncclBroadcast(bytes, bytes, tensor.nbytes(), ncclUint8, root, communicator_, stream),
          "broadcast");
  });
}

std::unique_ptr<Work> NcclCommunicator::barrier() {
  return all_reduce(at::zeros({1}, at::TensorOptions().dtype(at::kFloat).device(device())));
}

}  // namespace laterna::dist
