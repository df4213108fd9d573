// Requests to stop a training (spec section 3): a signal to any rank (launch/signals.h), or the
// file that `laterna stop` creates in the run folder, which names the owner of the folder's lock:
// it is meant for that training and no later one. Between micro-batches the ranks agree whether
// there is a request; if so, they save and end with status 75.
#pragma once

#include <cstdint>
#include <filesystem>

#include "dist/comm/communicator.h"

namespace laterna::launch {

/// The exit status of a training that stopped on request (spec section 3).
inline constexpr int kStoppedOnRequest = 75;

/// Thrown to abandon unfinished work when the ranks have agreed to stop.
struct StopAgreed {};

class StopRequest {
 public:
  /// `run`: the run folder, in which `laterna stop` leaves its request; `owner`: the id of the
  /// owner of the folder's lock, rank 0 of this training.
  StopRequest(std::filesystem::path run, std::int64_t owner, dist::Communicator& control);

  /// Collective. Returns whether any rank was asked to stop, the same answer on all ranks.
  bool agreed();
  /// Collective. Throws StopAgreed on all ranks when agreed(): for work that need not be finished.
  void obey();
  /// Removes the request for this training from the run folder (on rank 0, when the training has
  /// ended).
  void clear();

  /// Leaves a request in a run folder for the training that owns its lock.
  static void leave(const std::filesystem::path& run, std::int64_t owner);

 private:
  bool is_in_folder() const;

  std::filesystem::path file_;
  std::int64_t owner_;
  dist::Communicator& control_;
};

}  // namespace laterna::launch
