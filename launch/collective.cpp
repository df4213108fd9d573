#include "launch/collective.h"

#include <ATen/ATen.h>
#include <fmt/format.h>

#include "data/error.h"
#include "dist/agreement.h"
#include "launch/config.h"

namespace laterna::launch {

int status_of(const std::exception& error) {
  if (const auto* agreed = dynamic_cast<const CollectiveError*>(&error)) return agreed->status;
  if (dynamic_cast<const UsageError*>(&error)) return 2;
  if (dynamic_cast<const data::InputError*>(&error)) return 3;
  return 1;
}

std::string message_of(const std::exception& error) {
  const auto* torch = dynamic_cast<const c10::Error*>(&error);
  return torch ? torch->what_without_backtrace() : error.what();
}

void run_collectively(dist::World& world, const std::function<void()>& work) {
  std::optional<dist::Failure> mine;
  try {
    work();
  } catch (const std::exception& error) {
    mine = dist::Failure{status_of(error), message_of(error)};
  }
  const auto failure = dist::agree_on_failure(world.control(), mine);
  if (!failure) return;
  const std::string who = failure->ranks_failed < world.size()
                              ? fmt::format("rank {}: ", failure->rank)
                              : std::string();
  throw CollectiveError(failure->status, who + failure->message);
}

void require_one_world(const dist::World& world) {
  if (world.tasks() == world.size()) return;
  throw UsageError(fmt::format(
      "the launcher started {} tasks, but MPI sees only one rank; start them with mpirun, or "
      "with srun --mpi=pmix",
      world.tasks()));
}

void require_single_process(const dist::World& world, const std::string& verb) {
  if (world.size() == 1) return;
  throw CollectiveError(2,
                        fmt::format("{} runs in a single process; start it without mpirun", verb));
}

double appears_within(const dist::World& world) {
  return world.local_size() == world.size() ? 1 : 90;
}

std::int64_t broadcast_from_root(dist::World& world, std::int64_t mine) {
  const at::Tensor value = at::full({1}, mine, at::kLong);
  world.control().broadcast(value, 0)->wait();
  return value.item<std::int64_t>();
}

}  // namespace laterna::launch
