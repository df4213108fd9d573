#include "dist/comm/mpi_work.h"

#include <fmt/format.h>

#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <stdexcept>

namespace laterna::dist {
namespace {

// Splits [0, count) into pieces that MPI's int counts can hold and calls piece(offset, length) for
// each.
template <typename Piece>
void for_each_piece(std::int64_t count, std::int64_t longest, const Piece& piece) {
  for (std::int64_t offset = 0; offset < count; offset += longest) {
    piece(offset, static_cast<int>(std::min(longest, count - offset)));
  }
}

}  // namespace

void check_mpi(int code, const char* operation, int rank) {
  if (code == MPI_SUCCESS) return;
  char reason[MPI_MAX_ERROR_STRING] = "unknown error";
  int length = 0;
  MPI_Error_string(code, reason, &length);
  throw std::runtime_error(fmt::format("{} failed on rank {}: {}", operation, rank, reason));
}

MpiWork::MpiWork(const MpiChannel& channel, WorksUnderWay& under_way, std::vector<at::Tensor> kept)
    : channel_(channel), under_way_(under_way), kept_(std::move(kept)) {
  under_way_.push_back(this);
}

MpiWork::~MpiWork() {
  if (done_) return;
  std::erase(under_way_, this);
  if (std::uncaught_exceptions() == 0) {
    fmt::print(stderr, "rank {}: {} was destroyed before it was done: call wait() first\n",
               channel_.rank, channel_.operation);
    std::abort();
  }
  // An exception is unwinding. MPI may still read and write these tensors until the program ends,
  // so they are never freed.
  static_cast<void>(new std::vector<at::Tensor>(std::move(kept_)));
}

void MpiWork::send(const void* bytes, std::int64_t count, int to) {
  for_each_piece(count, channel_.piece_bytes, [&](std::int64_t offset, int length) {
    const auto* piece = static_cast<const std::byte*>(bytes) + offset;
    check_mpi(MPI_Isend(piece, length, MPI_BYTE, to, channel_.tag, channel_.communicator,
                        new_request(to)),
              channel_.operation, channel_.rank);
  });
}

void MpiWork::receive(void* bytes, std::int64_t count, int from) {
  for_each_piece(count, channel_.piece_bytes, [&](std::int64_t offset, int length) {
    auto* piece = static_cast<std::byte*>(bytes) + offset;
    check_mpi(MPI_Irecv(piece, length, MPI_BYTE, from, channel_.tag, channel_.communicator,
                        new_request(from)),
              channel_.operation, channel_.rank);
  });
}

void MpiWork::broadcast(void* bytes, std::int64_t count, int root) {
  for_each_piece(count, channel_.piece_bytes, [&](std::int64_t offset, int length) {
    auto* piece = static_cast<std::byte*>(bytes) + offset;
    check_mpi(MPI_Ibcast(piece, length, MPI_BYTE, root, channel_.communicator,
                         new_request(root == channel_.rank ? kNoPeer : root)),
              channel_.operation, channel_.rank);
  });
}

void MpiWork::barrier() {
  check_mpi(MPI_Ibarrier(channel_.communicator, new_request(kNoPeer)), channel_.operation,
            channel_.rank);
}

bool MpiWork::messages_arrived() {
  int arrived = 0;
  statuses_.resize(requests_.size());
  const int code =
      MPI_Testall(static_cast<int>(requests_.size()), requests_.data(), &arrived, statuses_.data());
  if (code == MPI_ERR_IN_STATUS) {
    for (const MPI_Status& status : statuses_) {
      if (status.MPI_ERROR == MPI_ERR_PENDING) continue;
      check_mpi(status.MPI_ERROR, channel_.operation, channel_.rank);
    }
  }
  check_mpi(code, channel_.operation, channel_.rank);
  return arrived != 0;
}

bool MpiWork::test() {
  if (done_) return true;
  if (!messages_arrived()) return false;
  requests_.clear();
  peers_.clear();
  if (!next_round_) {
    finish();
    return true;
  }
  ++channel_.tag;
  std::exchange(next_round_, nullptr)(*this);
  return false;
}

void MpiWork::report_peer() {
  for (std::size_t i = 0; i < requests_.size(); ++i) {
    int arrived = 0;
    MPI_Request_get_status(requests_[i], &arrived, MPI_STATUS_IGNORE);
    if (arrived) continue;
    channel_.heartbeat->set_peer(peers_[i] < 0 ? kSeveralPeers
                                               : (*channel_.world_ranks)[peers_[i]]);
    return;
  }
}

void MpiWork::wait() {
  using Clock = std::chrono::steady_clock;
  constexpr auto kLong = std::chrono::milliseconds(50);  // shorter waits are not recorded
  auto next_note = Clock::now() + kLong;
  bool reported = false;
  while (!test()) {
    const WorksUnderWay others = under_way_;  // a copy: test() removes finished works from the list
    for (MpiWork* other : others) {
      if (other != this) other->test();
    }
    if (!channel_.heartbeat || Clock::now() < next_note) continue;
    report_peer();
    reported = true;
    next_note += kLong;
  }
  if (reported) channel_.heartbeat->set_peer(kNoPeer);
}

void MpiWork::finish() {
  done_ = true;
  kept_.clear();
  std::erase(under_way_, this);
}

}  // namespace laterna::dist
