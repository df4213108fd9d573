// Requests to stop a training (spec section 3): a signal to any rank (launch/signals.h), or the
// file that `laterna stop` creates in the run folder. Between micro-batches the ranks agree whether
// there is one; if so, they save and end with status 75.
#pragma once

#include <filesystem>

#include "dist/comm/communicator.h"

namespace laterna::launch {

/// The exit status of a training that stopped on request (spec section 3).
inline constexpr int kStoppedOnRequest = 75;

/// Thrown to abandon unfinished work when the ranks have agreed to stop.
struct StopAgreed {};

class StopRequest {
 public:
  /// `run`: the run folder, in which `laterna stop` leaves its request.
  StopRequest(std::filesystem::path run, dist::Communicator& control);

  /// Collective. Returns whether any rank was asked to stop, the same answer on all ranks.
  bool agreed();
  /// Collective. Throws StopAgreed on all ranks when agreed(): for work that need not be finished.
  void obey();
  /// Removes an old request from the run folder (on rank 0, when a run starts or has stopped).
  void clear();

  /// Leaves a request to stop in the folder of a run.
  static void leave(const std::filesystem::path& run);

 private:
  std::filesystem::path file_;
  dist::Communicator& control_;
};

}  // namespace laterna::launch
