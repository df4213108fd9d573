// A collective made of point-to-point messages, in one or more rounds: when all messages of a round
// have arrived, the next round begins (all_reduce sums its slices and sends the sums). test() and
// wait() drive it; wait() also drives the other works of its communicator, because other ranks may
// be waiting for the next rounds of those.
#pragma once

#include <mpi.h>

#include <functional>
#include <vector>

#include "dist/comm/communicator.h"
#include "dist/heartbeat.h"

namespace laterna::dist {

class MpiWork;

/// The unfinished works of one communicator.
using WorksUnderWay = std::vector<MpiWork*>;

/// Where a work's messages go; `tag` and `tag + 1` belong to this work only.
struct MpiChannel {
  const char* operation = "";
  MPI_Comm communicator = MPI_COMM_NULL;
  int rank = 0;
  int tag = 0;
  std::int64_t piece_bytes = 0;
  Heartbeat* heartbeat = nullptr;                 // may be null
  const std::vector<int>* world_ranks = nullptr;  // each rank's rank in MPI_COMM_WORLD
};

/// Throws std::runtime_error with operation, rank and MPI's error text unless `code` is
/// MPI_SUCCESS.
void check_mpi(int code, const char* operation, int rank);

class MpiWork final : public Work {
 public:
  /// `kept`: the tensors whose memory the messages use, held until the work is done.
  MpiWork(const MpiChannel& channel, WorksUnderWay& under_way, std::vector<at::Tensor> kept);
  ~MpiWork() override;
  MpiWork(const MpiWork&) = delete;
  MpiWork& operator=(const MpiWork&) = delete;

  /// Post messages of the current round, in pieces; nothing for zero bytes.
  void send(const void* bytes, std::int64_t count, int to);
  void receive(void* bytes, std::int64_t count, int from);
  /// Post MPI's own non-blocking collectives.
  void broadcast(void* bytes, std::int64_t count, int root);
  void barrier();
  /// Sets `next`, which runs once when everything posted so far is done, and posts the second
  /// round.
  void then(std::function<void(MpiWork&)> next) { next_round_ = std::move(next); }

  bool test() override;
  void wait() override;

 private:
  /// Adds a request; `peer` is -1 where several ranks are concerned.
  MPI_Request* new_request(int peer) {
    peers_.push_back(peer);
    return &requests_.emplace_back(MPI_REQUEST_NULL);
  }
  /// Records in the heartbeat the peer of the first incomplete request.
  void report_peer();
  bool messages_arrived();
  void finish();

  MpiChannel channel_;
  WorksUnderWay& under_way_;
  std::vector<at::Tensor> kept_;
  std::vector<MPI_Request> requests_;
  std::vector<int> peers_;            // of each request
  std::vector<MPI_Status> statuses_;  // of each request: whether and why it failed
  std::function<void(MpiWork&)> next_round_;
  bool done_ = false;
};

}  // namespace laterna::dist
