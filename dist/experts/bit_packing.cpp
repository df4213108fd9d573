#include "dist/experts/bit_packing.h"

#include <ATen/ATen.h>
#include <ATen/Dispatch.h>
#include <ATen/Parallel.h>
#include <torch/library.h>

#include <array>
#include <cstring>

namespace laterna::dist {
namespace {

constexpr std::int64_t kGrain = 8;  // minimum rows per thread

/// Returns the eight elements that each byte stands for.
template <typename Real>
std::array<std::array<Real, 8>, 256> make_table() {
  std::array<std::array<Real, 8>, 256> table;
  for (std::size_t byte = 0; byte < 256; ++byte) {
    for (std::size_t bit = 0; bit < 8; ++bit) table[byte][bit] = Real((byte >> bit) & 1);
  }
  return table;
}

template <typename Real>
std::uint8_t byte_of(const Real* spikes, std::int64_t count) {
  unsigned byte = 0;
  for (std::int64_t bit = 0; bit < count; ++bit) byte |= unsigned(spikes[bit] != 0) << bit;
  return static_cast<std::uint8_t>(byte);
}

void pack_on_cpu(const at::Tensor& spikes, const at::Tensor& rows, const at::Tensor& packed) {
  const std::int64_t elements = spikes.size(1), bytes = packed_bytes(elements);
  const auto* row_of = rows.const_data_ptr<std::int64_t>();
  auto* out = packed.mutable_data_ptr<std::uint8_t>();
  AT_DISPATCH_FLOATING_TYPES(spikes.scalar_type(), "pack_rows", [&] {
    const auto* from = spikes.const_data_ptr<scalar_t>();
    at::parallel_for(0, rows.size(0), kGrain, [&](std::int64_t begin, std::int64_t end) {
      for (std::int64_t i = begin; i < end; ++i) {
        const scalar_t* row = from + row_of[i] * elements;
        for (std::int64_t byte = 0; byte < bytes; ++byte) {
          out[i * bytes + byte] =
              byte_of(row + 8 * byte, std::min<std::int64_t>(8, elements - 8 * byte));
        }
      }
    });
  });
}

void unpack_on_cpu(const at::Tensor& packed, const at::Tensor& spikes) {
  const std::int64_t elements = spikes.size(1), bytes = packed_bytes(elements);
  const auto* from = packed.const_data_ptr<std::uint8_t>();
  AT_DISPATCH_FLOATING_TYPES(spikes.scalar_type(), "unpack_rows", [&] {
    static const auto table = make_table<scalar_t>();
    auto* to = spikes.mutable_data_ptr<scalar_t>();
    at::parallel_for(0, spikes.size(0), kGrain, [&](std::int64_t begin, std::int64_t end) {
      for (std::int64_t i = begin; i < end; ++i) {
        for (std::int64_t byte = 0; byte < bytes; ++byte) {
          const auto count = std::min<std::int64_t>(8, elements - 8 * byte);
          std::memcpy(to + i * elements + 8 * byte, table[from[i * bytes + byte]].data(),
                      static_cast<std::size_t>(count) * sizeof(scalar_t));
        }
      }
    });
  });
}

template <typename Signature>
c10::TypedOperatorHandle<Signature> find_operator(const char* name) {
  return c10::Dispatcher::singleton().findSchemaOrThrow(name, "").typed<Signature>();
}

}  // namespace

TORCH_LIBRARY(laterna, m) {
  m.def("pack_rows(Tensor spikes, Tensor rows, Tensor(a!) packed) -> ()");
  m.def("unpack_rows(Tensor packed, Tensor(a!) spikes) -> ()");
}

TORCH_LIBRARY_IMPL(laterna, CPU, m) {
  m.impl("pack_rows", pack_on_cpu);
  m.impl("unpack_rows", unpack_on_cpu);
}

void pack_rows(const at::Tensor& spikes, const at::Tensor& rows, const at::Tensor& packed) {
  TORCH_CHECK(spikes.is_contiguous(), "pack_rows: spikes of strides ", spikes.strides(),
              " are not contiguous");
  static const auto pack = find_operator<decltype(pack_rows)>("laterna::pack_rows");
  pack.call(spikes, rows, packed);
}

void unpack_rows(const at::Tensor& packed, const at::Tensor& spikes) {
  static const auto unpack = find_operator<decltype(unpack_rows)>("laterna::unpack_rows");
  unpack.call(packed, spikes);
}

}  // namespace laterna::dist
