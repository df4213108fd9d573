#include "dist/comm/collective_arguments.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <numeric>
#include <stdexcept>

namespace laterna::dist {
namespace {

template <typename... Arguments>
[[noreturn]] void refuse(fmt::format_string<Arguments...> format, Arguments&&... arguments) {
  throw std::invalid_argument(fmt::format(format, std::forward<Arguments>(arguments)...));
}

void require_contiguous(const char* operation, const char* argument, const at::Tensor& tensor) {
  if (!tensor.defined()) refuse("{}: '{}' is an undefined tensor", operation, argument);
  if (!tensor.is_contiguous()) {
    refuse("{}: '{}' of shape [{}] is not contiguous: call contiguous() first", operation, argument,
           fmt::join(tensor.sizes(), ", "));
  }
}

void require_same_dtype(const char* operation, const at::Tensor& from, const at::Tensor& to) {
  if (from.scalar_type() == to.scalar_type()) return;
  refuse("{}: sends {} but receives {}: the dtypes must be equal", operation,
         c10::toString(from.scalar_type()), c10::toString(to.scalar_type()));
}

void check_rows(const char* argument, const at::Tensor& tensor, std::span<const std::int64_t> rows,
                int size) {
  require_contiguous("all_to_all_v", argument, tensor);
  if (tensor.dim() == 0) refuse("all_to_all_v: '{}' is a scalar, which has no rows", argument);
  if (std::ssize(rows) != size) {
    refuse("all_to_all_v: '{}' has {} row counts for {} ranks: one per rank is needed", argument,
           rows.size(), size);
  }
  for (const std::int64_t count : rows) {
    if (count < 0) refuse("all_to_all_v: '{}' has a negative row count: {}", argument, count);
  }
  const std::int64_t total = std::accumulate(rows.begin(), rows.end(), std::int64_t{0});
  if (total != tensor.size(0)) {
    refuse("all_to_all_v: '{}' has {} rows but its counts add up to {}", argument, tensor.size(0),
           total);
  }
}

}  // namespace

void check_all_reduce(const at::Tensor& tensor) {
  require_contiguous("all_reduce", "tensor", tensor);
  const at::ScalarType type = tensor.scalar_type();
  if (type != at::kFloat && type != at::kDouble && type != at::kLong) {
    refuse("all_reduce: cannot sum {}: float32, float64 and int64 are allowed",
           c10::toString(type));
  }
}

void check_all_gather(const at::Tensor& mine, const at::Tensor& all, int size) {
  require_contiguous("all_gather", "mine", mine);
  require_contiguous("all_gather", "all", all);
  require_same_dtype("all_gather", mine, all);
  if (all.numel() != size * mine.numel()) {
    refuse("all_gather: 'all' has {} elements, but {} ranks with {} elements each need {}",
           all.numel(), size, mine.numel(), size * mine.numel());
  }
}

void check_all_to_all_v(const at::Tensor& send, std::span<const std::int64_t> send_rows,
                        const at::Tensor& receive, std::span<const std::int64_t> receive_rows,
                        int size) {
  check_rows("send", send, send_rows, size);
  check_rows("receive", receive, receive_rows, size);
  require_same_dtype("all_to_all_v", send, receive);
  if (send.sizes().slice(1) != receive.sizes().slice(1)) {
    refuse(
        "all_to_all_v: sends rows of shape [{}] but receives rows of shape [{}]: the shapes must "
        "be equal",
        fmt::join(send.sizes().slice(1), ", "), fmt::join(receive.sizes().slice(1), ", "));
  }
}

void check_own_rows(std::span<const std::int64_t> send_rows,
                    std::span<const std::int64_t> receive_rows, int rank) {
  if (send_rows[rank] == receive_rows[rank]) return;
  refuse("all_to_all_v: rank {} sends itself {} rows but expects {} from itself", rank,
         send_rows[rank], receive_rows[rank]);
}

void check_broadcast(const at::Tensor& tensor, int root, int size) {
  require_contiguous("broadcast", "tensor", tensor);
  if (root < 0 || root >= size) {
    refuse("broadcast: root {} is not a rank; allowed: 0 to {}", root, size - 1);
  }
}

std::int64_t row_bytes(const at::Tensor& tensor) {
  return c10::multiply_integers(tensor.sizes().slice(1)) * tensor.element_size();
}

}  // namespace laterna::dist
