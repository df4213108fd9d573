// Failing together: where every rank prepares something (reads the configuration, opens the data),
// a failure on any of them becomes the same exception on all, so that one message is printed, not
// one a rank, and nobody is left waiting.
#pragma once

#include <cstdint>
#include <functional>
#include <stdexcept>
#include <string>

#include "dist/world.h"

namespace laterna::launch {

/// A failure that all ranks know of: rank 0 prints it, all end with `status`.
struct CollectiveError : std::runtime_error {
  CollectiveError(int exit_status, const std::string& message)
      : std::runtime_error(message), status(exit_status) {}
  int status;
};

/// The exit status that an exception stands for (spec section 3).
int status_of(const std::exception& error);
/// Its message, without the stack that LibTorch's errors carry.
std::string message_of(const std::exception& error);

/// Collective: runs `work` on every rank; throws CollectiveError on all when it failed on one. The
/// work itself must not communicate.
void run_collectively(dist::World& world, const std::function<void()>& work);

/// Throws UsageError when this is one of several tasks that do not find each other: each would do
/// the whole work, into the same files.
void require_one_world(const dist::World& world);

/// Throws CollectiveError when `verb` was started on several ranks: it is the work of one process.
void require_single_process(const dist::World& world, const std::string& verb);

/// Collective: rank 0's value.
std::int64_t broadcast_from_root(dist::World& world, std::int64_t mine);

}  // namespace laterna::launch
