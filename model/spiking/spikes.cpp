#include "model/spiking/spikes.h"

#include <ATen/ATen.h>
#include <ATen/Dispatch.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include <bit>

#include "model/kernels/cpu/kernels.h"
#include "model/kernels/cpu/parallel.h"

namespace laterna::model {
namespace {

at::Tensor unpacked(const at::Tensor& bits, std::int64_t groups, std::int64_t width,
                    at::ScalarType dtype) {
  const std::int64_t rows = bits.size(0) * groups;
  const at::Tensor values =
      at::empty({bits.size(0), groups * width}, at::TensorOptions().dtype(dtype));
  const at::Tensor from = bits.contiguous();
  AT_DISPATCH_FLOATING_TYPES(dtype, "unpack_spikes", [&] {
    kernels::for_ranges(rows, [&](std::int64_t, std::int64_t begin, std::int64_t end) {
      kernels::kernels<scalar_t>().unpack_rows(words_in(from), width, values.data_ptr<scalar_t>(),
                                               begin, end);
    });
  });
  return values;
}

class ValuesFunction : public torch::autograd::Function<ValuesFunction> {
 public:
  static at::Tensor forward(torch::autograd::AutogradContext*, const at::Tensor& proxy,
                            const at::Tensor& bits, std::int64_t groups) {
    return unpacked(bits, groups, proxy.size(1) / groups, proxy.scalar_type());
  }
  static torch::autograd::variable_list backward(torch::autograd::AutogradContext*,
                                                 torch::autograd::variable_list grads) {
    return {grads[0], at::Tensor(), at::Tensor()};
  }
};

template <typename Signature>
c10::TypedOperatorHandle<Signature> find_operator(const std::string& name) {
  return c10::Dispatcher::singleton()
      .findSchemaOrThrow(("laterna::" + name).c_str(), "")
      .typed<Signature>();
}

}  // namespace

// Implemented for CUDA in model/kernels/cuda/operators.cpp; CPU tensors hold bits already.
TORCH_LIBRARY(laterna, m) {
  m.def("pack_rows(Tensor spikes, Tensor(a!) packed) -> ()");
  m.def("unpack_rows(Tensor packed, Tensor(a!) spikes) -> ()");
}

std::uint64_t* words_in(const at::Tensor& bits) {
  return reinterpret_cast<std::uint64_t*>(bits.data_ptr<std::int64_t>());
}

std::vector<std::int64_t> fired_of_rows(const at::Tensor& bits) {
  const std::int64_t rows = bits.size(0), words = bits.size(1);
  std::vector<std::int64_t> fired(static_cast<std::size_t>(rows));
  kernels::for_ranges(rows, [&](std::int64_t, std::int64_t begin, std::int64_t end) {
    const auto* word = words_in(bits) + begin * words;
    for (std::int64_t row = begin; row < end; ++row) {
      for (std::int64_t w = 0; w < words; ++w) fired[row] += std::popcount(*word++);
    }
  });
  return fired;
}

at::Tensor empty_proxy(at::IntArrayRef shape, at::ScalarType dtype) {
  return at::zeros({}, at::TensorOptions().dtype(dtype)).expand(shape);
}

Spikes Spikes::of(const at::Tensor& values, std::int64_t groups) {
  if (!has_kernels(values.device())) return {values, at::Tensor(), groups};
  const std::int64_t width = values.size(1) / groups;
  const at::Tensor bits =
      at::empty({values.size(0), groups * kernels::words_of(width)}, at::TensorOptions(at::kLong));
  const at::Tensor from = values.detach().contiguous();
  AT_DISPATCH_FLOATING_TYPES(values.scalar_type(), "pack_spikes", [&] {
    kernels::for_ranges(values.size(0) * groups,
                        [&](std::int64_t, std::int64_t begin, std::int64_t end) {
                          kernels::kernels<scalar_t>().pack_rows(from.const_data_ptr<scalar_t>(),
                                                                 width, words_in(bits), begin, end);
                        });
  });
  return {values, bits, groups};
}

Spikes Spikes::of_bits(const at::Tensor& bits, std::int64_t width, at::ScalarType dtype,
                       std::int64_t groups) {
  return {empty_proxy({bits.size(0), groups * width}, dtype), bits, groups};
}

at::Tensor Spikes::values() const {
  return packed() ? ValuesFunction::apply(proxy, bits, groups) : proxy;
}

Spikes Spikes::slice(std::int64_t first, std::int64_t count) const {
  return {proxy.narrow(0, first, count), packed() ? bits.narrow(0, first, count) : at::Tensor(),
          groups};
}

at::Tensor Spikes::message(std::int64_t tokens) const {
  const std::int64_t bytes = message_bytes(width());
  if (packed()) {
    const at::Tensor rows = bits.view(at::kByte).narrow(1, 0, bytes);  // words are little-endian
    return rows.contiguous().view({-1, tokens * bytes});
  }
  const at::Tensor packed = at::empty({rows(), bytes}, proxy.options().dtype(at::kByte));
  static const auto pack = find_operator<void(const at::Tensor&, const at::Tensor&)>("pack_rows");
  pack.call(proxy.detach().contiguous(), packed);
  return packed.view({-1, tokens * bytes});
}

Spikes Spikes::of_message(const at::Tensor& blocks, std::int64_t width, at::ScalarType dtype) {
  const std::int64_t bytes = message_bytes(width), words = kernels::words_of(width);
  const at::Tensor rows = blocks.view({-1, bytes});  // [blocks * M, bytes]
  if (has_kernels(blocks.device())) {
    const at::Tensor padded =
        bytes == 8 * words ? rows : at::constant_pad_nd(rows, {0, 8 * words - bytes});
    return of_bits(padded.view(at::kLong), width, dtype);
  }
  const at::Tensor values = at::empty({rows.size(0), width}, blocks.options().dtype(dtype));
  static const auto unpack =
      find_operator<void(const at::Tensor&, const at::Tensor&)>("unpack_rows");
  unpack.call(rows, values);
  return {values, at::Tensor()};
}

Spikes Spikes::leaf() const { return {proxy.detach().requires_grad_(), bits, groups}; }

}  // namespace laterna::model
