// Requests to stop (spec section 3): a SIGUSR1 or SIGTERM to any rank, or the file that `laterna
// stop` leaves in the run folder. Ranks agree on them between micro-batches, save, and end with 75.
#pragma once

#include <filesystem>

#include "dist/communicator.h"

namespace laterna::launch {

/// Thrown by work that is not worth finishing.
struct StopAgreed {};

class StopRequest {
 public:
  /// Catches the signals from now on: the first thing that a training does, so that a request
  /// during its start is not its death.
  static void listen();

  /// `run` is where `laterna stop` leaves its request.
  StopRequest(std::filesystem::path run, dist::Communicator& control);

  /// Collective. Whether any rank was asked to stop: the same answer on all.
  bool agreed();
  /// The same, for work that is not worth finishing: throws StopAgreed on all ranks.
  void obey();
  /// Takes an old request away (rank 0, when a run starts or has stopped).
  void clear();

  /// Leaves a request in a run folder.
  static void leave(const std::filesystem::path& run);

 private:
  std::filesystem::path file_;
  dist::Communicator& control_;
};

}  // namespace laterna::launch
