// CPU tensors over MPI, by point-to-point messages. Of MPI's own collectives only broadcast and
// barrier are used: MPI's sums need not have the same bits on all ranks, its counts are ints, and
// it matches the collectives of a communicator by their order only, so one with two stages
// (all_reduce) could not start its second stage at different moments on different ranks. Here each
// collective has its own number, which its messages carry as their tag, so any number of
// collectives can be in progress at once and finish in any order.
//
// all_reduce: slice r of every rank's tensor goes to rank r, which adds the slices in rank order
// and sends the sum to all ranks. Each rank sends 2 (size-1)/size of the tensor and adds up 1/size
// of it; the bits are equal on all ranks.
#pragma once

#include <mpi.h>

#include <vector>

#include "dist/comm/communicator.h"
#include "dist/heartbeat.h"

namespace laterna::dist {

class MpiWork;

/// Spans all ranks of an intracommunicator without other users, which the caller frees later. Sets
/// MPI_ERRORS_RETURN on it: failures become std::runtime_error with operation, rank and MPI's
/// reason.
class MpiCommunicator final : public Communicator {
 public:
  /// Longer messages are split into pieces of this size, because MPI counts bytes in an int.
  static constexpr std::int64_t kPieceBytes = std::int64_t{1} << 30;

  /// `heartbeat` is null or outlives this object; a long wait records there which rank it waits
  /// for.
  explicit MpiCommunicator(MPI_Comm communicator, Heartbeat* heartbeat = nullptr,
                           std::int64_t piece_bytes = kPieceBytes);

  int rank() const override { return rank_; }
  int size() const override { return size_; }
  at::Device device() const override { return at::kCPU; }
  std::unique_ptr<Work> all_reduce(const at::Tensor& tensor) override;
  std::unique_ptr<Work> all_gather(const at::Tensor& mine, const at::Tensor& all) override;
  std::unique_ptr<Work> all_to_all_v(const at::Tensor& send,
                                     std::span<const std::int64_t> send_rows,
                                     const at::Tensor& receive,
                                     std::span<const std::int64_t> receive_rows) override;
  std::unique_ptr<Work> broadcast(const at::Tensor& tensor, int root) override;
  std::unique_ptr<Work> barrier() override;

 private:
  /// Returns a Work with its own number among this communicator's collectives, hence its own tags.
  std::unique_ptr<MpiWork> begin(const char* operation, std::vector<at::Tensor> kept);
  template <typename Action>
  void for_each_peer(const Action& action) const;

  MPI_Comm communicator_;
  Heartbeat* heartbeat_;
  std::int64_t piece_bytes_;
  std::vector<int> world_ranks_;  // each rank's rank in MPI_COMM_WORLD
  int rank_ = 0;
  int size_ = 1;
  int last_tag_ = 0;
  int next_tag_ = 0;  // the same on all ranks; tags repeat after 2^30 collectives
  std::vector<MpiWork*> under_way_;
};

}  // namespace laterna::dist
