// The ranks that run this program together, and MPI's lifetime. A program started by mpirun or srun
// is a rank of an MPI world; one started by itself never touches MPI and starts quickly.
//
// World = EP x DP, expert-parallel neighbours first: ranks g * EP .. g * EP + EP - 1 are group g.
// Communicators of their own, so that nothing overtakes: over all ranks `control` (errors, step
// facts, checks) and `reduction` (gradients of what all hold, behind the backward pass); in a group
// `exchange` (activations, inside it); among the ranks that hold the same candidates
// `replica_group` (their gradients). On GPUs the last three move CUDA tensors over NCCL; control
// stays with MPI.
//
// MPI is asked for MPI_THREAD_SERIALIZED: one thread calls at a time, but it need not be the thread
// that called MPI_Init. On the CPU autograd runs backward, and so the reducer's hooks, on the
// calling thread; on other devices on the engine's thread, while the caller waits. Open MPI takes
// locks only for MPI_THREAD_MULTIPLE, so this costs nothing over FUNNELED.
#pragma once

#include <memory>
#include <string>

#include "dist/communicator.h"
#include "dist/device.h"
#include "dist/heartbeat.h"

namespace laterna::dist {

/// MPI's own name and version, such as "Open MPI v4.1.4"; works without joining.
std::string mpi_version();

/// Made once, on the main thread, before the first thread and file of the run. The destructor frees
/// memory and does not communicate: a rank that ends without finalize() is a rank that failed.
class World {
 public:
  /// Joins the ranks (collective). Throws std::runtime_error when MPI cannot start.
  World();
  ~World();
  World(const World&) = delete;
  World& operator=(const World&) = delete;

  int rank() const { return rank_; }
  int size() const { return size_; }
  /// The tasks that the launcher started: more than size() where they do not find each other (srun
  /// without --mpi=pmix).
  int tasks() const;
  /// This rank among those of its host, and how many they are: they share its cores and devices.
  int local_rank() const { return local_rank_; }
  int local_size() const { return local_size_; }
  const std::string& host() const { return host_; }

  /// Collective, before the first tensor: this rank computes on a GPU where its host has one (see
  /// Device). Throws std::runtime_error on all ranks when some have a GPU and some have not, or
  /// when one cannot be used.
  void open_device();
  /// What this rank does; communicators note there whom it waits for.
  Heartbeat& heartbeat() { return heartbeat_; }
  /// The CPU before open_device().
  const Device& device() const { return device_; }

  Communicator& control() { return *control_; }
  Communicator& reduction() { return *reduction_; }
  Communicator& exchange() { return *exchange_; }
  Communicator& replica_group() { return *replica_group_; }

  /// Collective: forms groups of `expert` ranks and, of all ranks, `shards` replica groups (rank e
  /// of a group holds shard e % shards, as in Placement). Before it every rank is a group by itself
  /// and all hold the same. They move tensors of device(). Throws std::invalid_argument when
  /// `expert` does not divide size().
  void form_groups(std::int64_t expert, std::int64_t shards);

  /// Leaves MPI together with the other ranks (collective). The communicators are gone afterwards.
  void finalize();

  /// Ends all ranks at once with this exit status, without waiting for them: for a rank that failed
  /// where the others cannot know it. What is printed is flushed. Call it where MPI may be called.
  [[noreturn]] void abort(int status);

 private:
  struct Mpi;  // MPI's handles; null in a program that runs by itself

  void join();

  int rank_ = 0;
  int size_ = 1;
  int local_rank_ = 0;
  int local_size_ = 1;
  std::int64_t expert_ = 0, shards_ = 0;  // the groups that stand; 0: none were formed
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
