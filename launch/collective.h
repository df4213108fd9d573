// Failing together: where every rank prepares something (reads the configuration, opens the data),
// a failure on any rank becomes the same exception on all ranks, so that one message is printed
// rather than one per rank, and no rank is left waiting.
#pragma once

#include <cstdint>
#include <functional>
#include <stdexcept>
#include <string>

#include "dist/world.h"

namespace laterna::launch {

/// A failure that all ranks know of: rank 0 prints the message, and all ranks end with `status`.
struct CollectiveError : std::runtime_error {
  CollectiveError(int exit_status, const std::string& message)
      : std::runtime_error(message), status(exit_status) {}
  int status;
};

/// Returns the exit status that an exception stands for (spec section 3).
int status_of(const std::exception& error);
/// Returns an exception's message, without the stack trace that LibTorch's errors carry.
std::string message_of(const std::exception& error);

/// Collective. Runs `work` on every rank, and throws CollectiveError on all ranks when it failed on
/// any. `work` itself must not communicate.
void run_collectively(dist::World& world, const std::function<void()>& work);

/// Throws UsageError when the launcher started several tasks that MPI did not connect: each of them
/// would do the whole work and write to the same files.
void require_one_world(const dist::World& world);

/// Throws CollectiveError when `verb`, which needs a single process, runs on several ranks.
void require_single_process(const dist::World& world, const std::string& verb);

/// Returns how many seconds what one host wrote may stay hidden from others, which cache a shared
/// file system's folders (NFS: for up to 60 s).
double appears_within(const dist::World& world);

/// Collective. Returns rank 0's value on every rank.
std::int64_t broadcast_from_root(dist::World& world, std::int64_t mine);

}  // namespace laterna::launch
