#include "model/spiking/dense_product.h"

#include <ATen/ATen.h>
#include <ATen/core/dispatch/Dispatcher.h>

namespace laterna::model {
namespace {

// Below this many multiply-adds, setting up oneDNN takes longer than the product.
constexpr double kSmall = 1 << 20;

using OneDnnLinear = at::Tensor(const at::Tensor& input, const at::Tensor& weight,
                                const std::optional<at::Tensor>& bias, c10::string_view attribute,
                                c10::List<std::optional<at::Scalar>> scalars,
                                std::optional<c10::string_view> algorithm);

/// Returns oneDNN's operator for input [rows, in] times the transpose of weight [out, in]; nothing
/// on Intel processors, where MKL is fastest, and where LibTorch was built without oneDNN.
const std::optional<c10::TypedOperatorHandle<OneDnnLinear>>& one_dnn() {
  static const auto found = []() -> std::optional<c10::TypedOperatorHandle<OneDnnLinear>> {
#if defined(__x86_64__)
    if (__builtin_cpu_is("intel")) return std::nullopt;
#endif
    const auto schema = c10::Dispatcher::singleton().findSchema({"mkldnn::_linear_pointwise", ""});
    if (!schema || !schema->hasKernelForDispatchKey(c10::DispatchKey::CPU)) return std::nullopt;
    return schema->typed<OneDnnLinear>();
  }();
  return found;
}

}  // namespace

at::Tensor dense_product(const at::Tensor& a, const at::Tensor& b) {
  const double work = double(a.numel()) * double(b.size(1));
  const at::NoGradGuard no_grad;
  if (!a.is_cpu() || a.scalar_type() != at::kFloat || work < kSmall || !one_dnn()) {
    return at::mm(a, b);
  }
  return one_dnn()->call(a, b.t(), std::nullopt, "none", c10::List<std::optional<at::Scalar>>(),
                         "");
}

}  // namespace laterna::model
