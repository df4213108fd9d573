#include "dist/comm/mpi_communicator.h"

#include <fmt/format.h>

#include <array>
#include <cstring>
#include <numeric>
#include <stdexcept>

#include "dist/comm/collective_arguments.h"
#include "dist/comm/mpi_work.h"

namespace laterna::dist {
namespace {

void require_cpu(const char* operation, const at::Tensor& tensor) {
  if (tensor.is_cpu()) return;
  throw std::invalid_argument(fmt::format("{}: the MPI back end moves CPU tensors, not {}",
                                          operation, tensor.device().str()));
}

std::byte* bytes_of(const at::Tensor& tensor) {
  return static_cast<std::byte*>(tensor.mutable_data_ptr());
}

void copy_own(std::byte* to, const std::byte* from, std::int64_t count) {
  if (count > 0 && to != from) std::memmove(to, from, static_cast<std::size_t>(count));
}

// sum[i] = ((terms[0][i] + terms[1][i]) + terms[2][i]) + ..., one tile at a time, so that each term
// is read once and the sum stays in cache. `sum` may be one of the terms.
template <typename T>
void add_in_order(std::span<const T* const> terms, T* sum, std::int64_t count) {
  constexpr std::int64_t kTile = 1024;
  std::array<T, kTile> tile;
  for (std::int64_t begin = 0; begin < count; begin += kTile) {
    const std::int64_t length = std::min(kTile, count - begin);
    std::copy_n(terms[0] + begin, length, tile.data());
    for (const T* term : terms.subspan(1)) {
      for (std::int64_t i = 0; i < length; ++i) tile[i] += term[begin + i];
    }
    std::copy_n(tile.data(), length, sum + begin);
  }
}

// Row r of `others` [size, slice] holds rank r's slice; this rank's slice is still in the tensor,
// at `own`, where the sum goes.
template <typename T>
void sum_slices(const at::Tensor& others, void* own, int rank) {
  const std::int64_t slice = others.size(1);
  std::vector<const T*> terms;
  for (std::int64_t r = 0; r < others.size(0); ++r) {
    terms.push_back(r == rank ? static_cast<const T*>(own)
                              : others.const_data_ptr<T>() + r * slice);
  }
  add_in_order<T>(terms, static_cast<T*>(own), slice);
}

void sum_slices_of_any_type(const at::Tensor& others, void* own, int rank) {
  switch (others.scalar_type()) {
    case at::kFloat:
      return sum_slices<float>(others, own, rank);
    case at::kDouble:
      return sum_slices<double>(others, own, rank);
    default:
      return sum_slices<std::int64_t>(others, own, rank);  // check_all_reduce allows no other dtype
  }
}

/// Returns the ranks in MPI_COMM_WORLD of a communicator's ranks 0 .. size-1.
std::vector<int> translate(MPI_Comm communicator, int size) {
  std::vector<int> mine(static_cast<std::size_t>(size)), in_world(mine);
  std::iota(mine.begin(), mine.end(), 0);
  MPI_Group group = MPI_GROUP_NULL, world = MPI_GROUP_NULL;
  MPI_Comm_group(communicator, &group);
  MPI_Comm_group(MPI_COMM_WORLD, &world);
  MPI_Group_translate_ranks(group, size, mine.data(), world, in_world.data());
  MPI_Group_free(&group);
  MPI_Group_free(&world);
  return in_world;
}

}  // namespace

MpiCommunicator::MpiCommunicator(MPI_Comm communicator, Heartbeat* heartbeat,
                                 std::int64_t piece_bytes)
    : communicator_(communicator), heartbeat_(heartbeat), piece_bytes_(piece_bytes) {
  check_mpi(MPI_Comm_set_errhandler(communicator_, MPI_ERRORS_RETURN), "MPI_Comm_set_errhandler",
            0);
  check_mpi(MPI_Comm_rank(communicator_, &rank_), "MPI_Comm_rank", 0);
  check_mpi(MPI_Comm_size(communicator_, &size_), "MPI_Comm_size", rank_);
  int* upper_bound = nullptr;
  int found = 0;
  check_mpi(MPI_Comm_get_attr(communicator_, MPI_TAG_UB, &upper_bound, &found), "MPI_Comm_get_attr",
            rank_);
  last_tag_ = found ? *upper_bound : 32767;  // the least that the MPI standard allows
  world_ranks_ = translate(communicator_, size_);
}

std::unique_ptr<MpiWork> MpiCommunicator::begin(const char* operation,
                                                std::vector<at::Tensor> kept) {
  for (const at::Tensor& tensor : kept) require_cpu(operation, tensor);
  const MpiChannel channel{operation,    communicator_, rank_,        next_tag_,
                           piece_bytes_, heartbeat_,    &world_ranks_};
  next_tag_ = next_tag_ > last_tag_ - 3 ? 0 : next_tag_ + 2;
  return std::make_unique<MpiWork>(channel, under_way_, std::move(kept));
}

// The order of peers differs from rank to rank, so that not all ranks send to rank 0 first.
template <typename Action>
void MpiCommunicator::for_each_peer(const Action& action) const {
  for (int step = 1; step < size_; ++step) action((rank_ + step) % size_);
}

std::unique_ptr<Work> MpiCommunicator::all_reduce(const at::Tensor& tensor) {
  check_all_reduce(tensor);
  const std::int64_t element = tensor.element_size();
  const auto first = [count = tensor.numel(), size = size_](std::int64_t r) {
    return count / size * r + std::min<std::int64_t>(r, count % size);  // start of rank r's slice
  };
  const std::int64_t slice = first(rank_ + 1) - first(rank_);
  const at::Tensor others = at::empty({size_, slice}, tensor.options().requires_grad(false));
  auto work = begin("all_reduce", {tensor, others});

  for_each_peer([&](int peer) {
    work->receive(bytes_of(others) + peer * slice * element, slice * element, peer);
  });
  for_each_peer([&](int peer) {
    work->send(bytes_of(tensor) + first(peer) * element, (first(peer + 1) - first(peer)) * element,
               peer);
  });
  work->then([=, this](MpiWork& second_round) {
    std::byte* own = bytes_of(tensor) + first(rank_) * element;
    sum_slices_of_any_type(others, own, rank_);
    for_each_peer([&](int peer) {
      second_round.receive(bytes_of(tensor) + first(peer) * element,
                           (first(peer + 1) - first(peer)) * element, peer);
    });
    for_each_peer([&](int peer) { second_round.send(own, slice * element, peer); });
  });
  return work;
}

std::unique_ptr<Work> MpiCommunicator::all_gather(const at::Tensor& mine, const at::Tensor& all) {
  check_all_gather(mine, all, size_);
  const auto bytes = static_cast<std::int64_t>(mine.nbytes());
  auto work = begin("all_gather", {mine, all});
  for_each_peer([&](int peer) { work->receive(bytes_of(all) + peer * bytes, bytes, peer); });
  for_each_peer([&](int peer) { work->send(mine.const_data_ptr(), bytes, peer); });
  copy_own(bytes_of(all) + rank_ * bytes, bytes_of(mine), bytes);
  return work;
}

std::unique_ptr<Work> MpiCommunicator::all_to_all_v(const at::Tensor& send,
                                                    std::span<const std::int64_t> send_rows,
                                                    const at::Tensor& receive,
                                                    std::span<const std::int64_t> receive_rows) {
  check_all_to_all_v(send, send_rows, receive, receive_rows, size_);
  check_own_rows(send_rows, receive_rows, rank_);
  const std::int64_t row = row_bytes(send);
  auto work = begin("all_to_all_v", {send, receive});
  const auto place = [row](const at::Tensor& tensor, std::span<const std::int64_t> rows, int r) {
    return bytes_of(tensor) +
           row * std::accumulate(rows.begin(), rows.begin() + r, std::int64_t{0});
  };
  for_each_peer([&](int peer) {
    work->receive(place(receive, receive_rows, peer), receive_rows[peer] * row, peer);
  });
  for_each_peer(
      [&](int peer) { work->send(place(send, send_rows, peer), send_rows[peer] * row, peer); });
  copy_own(place(receive, receive_rows, rank_), place(send, send_rows, rank_),
           send_rows[rank_] * row);
  return work;
}

std::unique_ptr<Work> MpiCommunicator::broadcast(const at::Tensor& tensor, int root) {
  check_broadcast(tensor, root, size_);
  auto work = begin("broadcast", {tensor});
  work->broadcast(tensor.mutable_data_ptr(), static_cast<std::int64_t>(tensor.nbytes()), root);
  return work;
}

std::unique_ptr<Work> MpiCommunicator::barrier() {
  auto work = begin("barrier", {});
  work->barrier();
  return work;
}

}  // namespace laterna::dist
