// What a collective accepts, checked the same way by every back end before anything is sent: a rank
// that throws here has not yet left the others waiting inside a half-sent message.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <span>

namespace laterna::dist {

/// Each throws std::invalid_argument naming the operation, the value and what is allowed.
/// A sum takes contiguous float32, float64 or int64.
void check_all_reduce(const at::Tensor& tensor);
/// `all` holds `size` times `mine`, same dtype, both contiguous.
void check_all_gather(const at::Tensor& mine, const at::Tensor& all, int size);
/// One count a rank, none negative, their sums the first dimensions; rows of one shape and dtype.
void check_all_to_all_v(const at::Tensor& send, std::span<const std::int64_t> send_rows,
                        const at::Tensor& receive, std::span<const std::int64_t> receive_rows,
                        int size);
/// A rank sends itself as many rows as it expects from itself.
void check_own_rows(std::span<const std::int64_t> send_rows,
                    std::span<const std::int64_t> receive_rows, int rank);
/// A contiguous tensor and a root in 0..size-1.
void check_broadcast(const at::Tensor& tensor, int root, int size);

/// Bytes of one row (all dimensions but the first) of `tensor`.
std::int64_t row_bytes(const at::Tensor& tensor);

}  // namespace laterna::dist
