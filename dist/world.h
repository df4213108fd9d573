// The ranks that run this program together, and MPI's lifetime. A program started by mpirun or srun
// is a rank of an MPI world; a program started without a launcher never calls MPI and starts
// quickly.
//
// World = EP x DP, expert-parallel neighbours first: ranks g * EP .. g * EP + EP - 1 form group g.
// Each kind of traffic has its own communicator, so that messages of different kinds never overtake
// or match each other:
//   control        all ranks: errors, facts of a step, checks
//   reduction      all ranks: gradients of what every rank holds, hidden behind the backward pass
//   exchange       one group: activations, within the forward and backward pass
//   replica_group  the ranks that hold the same shard: gradients of its candidates
// On GPUs the last three move CUDA tensors over NCCL; control stays on MPI.
//
// MPI is initialised with MPI_THREAD_SERIALIZED: one thread calls MPI at a time, but not
// necessarily the thread that called MPI_Init. On the CPU, autograd runs the backward pass, and so
// the reducer's hooks, on the calling thread; on other devices, on the engine's thread while the
// caller waits. Open MPI takes locks only for MPI_THREAD_MULTIPLE, so this costs nothing over
// MPI_THREAD_FUNNELED.
#pragma once

#include <memory>
#include <string>

#include "dist/comm/communicator.h"
#include "dist/device.h"
#include "dist/heartbeat.h"

namespace laterna::dist {

/// Returns the MPI library's name and version, such as "Open MPI v4.1.4"; works before MPI is
/// initialised.
std::string mpi_version();

/// The ranks of the run as seen by this rank. Construct it once, on the main thread, before the run
/// starts a thread that computes or opens a file. The destructor only frees memory and does not
/// communicate: a rank that ends without finalize() has failed.
class World {
 public:
  /// Joins the ranks (collective). Throws std::runtime_error when MPI cannot start.
  World();
  ~World();
  World(const World&) = delete;
  World& operator=(const World&) = delete;

  int rank() const { return rank_; }
  int size() const { return size_; }
  /// The number of tasks that the launcher started; more than size() where the tasks do not find
  /// each other (srun without --mpi=pmix).
  int tasks() const;
  /// The index of this rank among the ranks of its host, and their number; those ranks share the
  /// host's cores and devices.
  int local_rank() const { return local_rank_; }
  int local_size() const { return local_size_; }
  const std::string& host() const { return host_; }

  /// Selects a GPU for this rank where its host has one (see Device). Collective; call it before
  /// the first tensor is created. Throws std::runtime_error on all ranks when only some ranks have
  /// a GPU or when a GPU cannot be used.
  void open_device();
  /// What this rank reports it is doing; communicators record there which rank they wait for.
  Heartbeat& heartbeat() { return heartbeat_; }
  /// The device that this rank computes on; the CPU before open_device().
  const Device& device() const { return device_; }

  Communicator& control() { return *control_; }
  Communicator& reduction() { return *reduction_; }
  Communicator& exchange() { return *exchange_; }
  Communicator& replica_group() { return *replica_group_; }

  /// Forms groups of `expert` ranks and, across all ranks, `shards` replica groups (rank e of a
  /// group holds shard e % shards, as in Placement); their communicators move tensors of device().
  /// Collective. Before the first call every rank is its own group and all ranks are one replica
  /// group. Throws std::invalid_argument when `expert` does not divide size().
  void form_groups(std::int64_t expert, std::int64_t shards);

  /// Destroys the communicators and leaves MPI together with the other ranks (collective).
  void finalize();

  /// Ends all ranks at once with this exit status, without waiting for them: for a failure that the
  /// other ranks cannot learn of. Flushes all output. Call it only where MPI may be called.
  [[noreturn]] void abort(int status);

 private:
  struct Mpi;  // MPI's handles; null in a program without a launcher

  void join();

  int rank_ = 0;
  int size_ = 1;
  int local_rank_ = 0;
  int local_size_ = 1;
  std::int64_t expert_ = 0, shards_ = 0;  // of the current groups; 0: none formed yet
  std::string host_;
  Heartbeat heartbeat_;
  Device device_;
  std::unique_ptr<Mpi> mpi_;
  std::unique_ptr<Communicator> control_;
  std::unique_ptr<Communicator> reduction_;
  std::unique_ptr<Communicator> exchange_;
  std::unique_ptr<Communicator> replica_group_;
};

}  // namespace laterna::dist
