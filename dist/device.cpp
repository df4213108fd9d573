#include "dist/device.h"

#include <dlfcn.h>
#include <fmt/format.h>

#include <cstdlib>
#include <stdexcept>

namespace laterna::dist {
namespace {

constexpr const char* kLibrary = "liblaterna_cuda.so";

/// Returns the number of GPUs that the driver shows this process; 0 where there is no driver.
int visible_gpus() {
  void* driver = dlopen("libcuda.so.1", RTLD_NOW | RTLD_LOCAL);
  if (driver == nullptr) return 0;
  const auto init = reinterpret_cast<int (*)(unsigned)>(dlsym(driver, "cuInit"));
  const auto count = reinterpret_cast<int (*)(int*)>(dlsym(driver, "cuDeviceGetCount"));
  int gpus = 0;
  if (!init || !count || init(0) != 0 || count(&gpus) != 0) return 0;
  return gpus;
}

/// Returns null where the program was built without the library.
const CudaBackend* open_library() {
  // RTLD_GLOBAL, because LibTorch itself looks up its CUDA half, which this library loads.
  void* library = dlopen(kLibrary, RTLD_NOW | RTLD_GLOBAL);
  if (library == nullptr) {
    const std::string reason = dlerror();
    if (reason.starts_with(std::string(kLibrary) + ": cannot open")) return nullptr;
    throw std::runtime_error(fmt::format(
        "{} cannot be opened: {}; set CUDA_VISIBLE_DEVICES= (empty) to compute on the CPU",
        kLibrary, reason));
  }
  using Entry = const CudaBackend* (*)();
  const auto entry = reinterpret_cast<Entry>(dlsym(library, kCudaBackendSymbol));
  if (entry == nullptr) {
    throw std::runtime_error(
        fmt::format("{} belongs to another version of Laterna: rebuild it", kLibrary));
  }
  return entry();
}

}  // namespace

Device Device::open(int local_rank) {
  Device device;
  device.gpus_ = visible_gpus();
  if (device.gpus_ == 0) return device;
  device.cuda_ = open_library();
  if (device.cuda_ == nullptr) return device;
  const int index = local_rank % device.gpus_;
  device.cuda_->select(index);
  device.torch_ = at::Device(at::kCUDA, static_cast<at::DeviceIndex>(index));
  return device;
}

std::string Device::description() const {
  if (is_cuda()) return fmt::format("{} ({})", torch_.str(), cuda_->name(torch_.index()));
  if (gpus_ == 0) return "cpu";
  return fmt::format(
      "cpu (the {} GPU(s) of this host are not used: built without the CUDA toolkit)", gpus_);
}

}  // namespace laterna::dist
