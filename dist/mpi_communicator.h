// CPU tensors over MPI, by point-to-point messages. Why not MPI's own collectives: their sums need
// not have the same bits on all ranks, their counts are ints, and a collective of two stages
// (all_reduce) must not start its second one at different moments on a communicator where order is
// all that matches. Here each collective has its own number, the messages carry it as their tag,
// and so any number of them can be under way at once and finish in any order.
//
// all_reduce: slice r of every rank goes to rank r, which adds them in rank order and sends the sum
// to all. Each rank sends 2 (size-1)/size of the tensor and adds up 1/size of it; bits are equal.
#pragma once

#include <mpi.h>

#include <vector>

#include "dist/communicator.h"
#include "dist/heartbeat.h"

namespace laterna::dist {

class MpiWork;

/// Over all ranks of an intracommunicator that nobody else uses; the caller frees it, later. Sets
/// MPI_ERRORS_RETURN on it: failures become std::runtime_error with operation, rank, MPI's reason.
class MpiCommunicator final : public Communicator {
 public:
  /// Longer messages go in pieces of this size: MPI counts bytes in an int.
  static constexpr std::int64_t kPieceBytes = std::int64_t{1} << 30;

  /// `heartbeat` outlives it, or is null: whom a long wait waits for is noted there.
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
  /// A work with its own number among this communicator's collectives, hence with its own tags.
  std::unique_ptr<MpiWork> begin(const char* operation, std::vector<at::Tensor> kept);
  template <typename Action>
  void for_each_peer(const Action& action) const;

  MPI_Comm communicator_;
  Heartbeat* heartbeat_;
  std::int64_t piece_bytes_;
  std::vector<int> world_ranks_;  // of each rank
  int rank_ = 0;
  int size_ = 1;
  int last_tag_ = 0;
  int next_tag_ = 0;  // advances alike on all ranks; tags come round after 2^30 collectives
  std::vector<MpiWork*> under_way_;
};

}  // namespace laterna::dist
