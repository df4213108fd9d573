// The argument checks of collectives, which every back end makes before anything is sent: a rank
// that throws here has not yet left other ranks waiting inside a half-sent message. Each check
// throws std::invalid_argument naming the operation, the value and what is allowed.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <span>

namespace laterna::dist {

/// Requires a contiguous tensor of float32, float64 or int64.
void check_all_reduce(const at::Tensor& tensor);
/// Requires that `all` holds `size` times `mine`, of the same dtype, both contiguous.
void check_all_gather(const at::Tensor& mine, const at::Tensor& all, int size);
/// Requires one row count per rank, none negative, counts that add up to the first dimensions, and
/// rows of one shape and dtype.
void check_all_to_all_v(const at::Tensor& send, std::span<const std::int64_t> send_rows,
                        const at::Tensor& receive, std::span<const std::int64_t> receive_rows,
                        int size);
/// Requires that the rank sends itself as many rows as it expects from itself.
void check_own_rows(std::span<const std::int64_t> send_rows,
                    std::span<const std::int64_t> receive_rows, int rank);
/// Requires a contiguous tensor and a root in 0..size-1.
void check_broadcast(const at::Tensor& tensor, int root, int size);

/// Returns the number of bytes in one row (all dimensions but the first) of `tensor`.
std::int64_t row_bytes(const at::Tensor& tensor);

}  // namespace laterna::dist
