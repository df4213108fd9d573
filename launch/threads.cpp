#include "launch/threads.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <fmt/format.h>
#include <sched.h>
#include <unistd.h>

#include <algorithm>
#include <bit>
#include <cstdlib>
#include <span>

#include "dist/agreement.h"
#include "dist/content_hash.h"
#include "launch/cgroups.h"

namespace laterna::launch {
namespace {

constexpr std::int64_t kWords = sizeof(cpu_set_t) / sizeof(std::int64_t);

std::vector<bool> cores_of(pid_t process) {
  cpu_set_t set;
  CPU_ZERO(&set);
  std::vector<bool> cores(CPU_SETSIZE);
  if (sched_getaffinity(process, sizeof(set), &set) != 0) {  // more cores than the set can hold
    std::fill_n(cores.begin(), std::min<long>(CPU_SETSIZE, sysconf(_SC_NPROCESSORS_ONLN)), true);
    return cores;
  }
  for (int core = 0; core < CPU_SETSIZE; ++core) cores[core] = CPU_ISSET(core, &set);
  return cores;
}

std::int64_t count(const std::vector<bool>& cores) {
  return std::count(cores.begin(), cores.end(), true);
}

/// Returns the number of cores that any of the ranks may use.
std::int64_t all_cores(const std::vector<RankCores>& ranks) {
  std::int64_t cores = 0;
  for (std::size_t core = 0; core < ranks.front().allowed.size(); ++core) {
    cores += std::any_of(ranks.begin(), ranks.end(), [&](auto& r) { return r.allowed[core]; });
  }
  return cores;
}

}  // namespace

std::int64_t threads_of(const std::vector<RankCores>& ranks, std::size_t me) {
  double share = 0;
  for (std::size_t core = 0; core < ranks[me].allowed.size(); ++core) {
    if (!ranks[me].allowed[core]) continue;
    share += 1.0 / double(std::count_if(ranks.begin(), ranks.end(),
                                        [&](auto& r) { return r.allowed[core]; }));
  }
  if (const double quota = ranks[me].quota; quota > 0) {
    share *= std::min(1.0, quota / double(all_cores(ranks)));
  }
  return std::max<std::int64_t>(1, static_cast<std::int64_t>(share + 1e-9));
}

std::string trouble_with(const std::vector<RankCores>& ranks, std::int64_t offered) {
  const std::int64_t cores = all_cores(ranks);
  std::int64_t threads = 0;
  for (std::size_t i = 0; i < ranks.size(); ++i) {
    threads += ranks[i].threads > 0 ? ranks[i].threads : threads_of(ranks, i);
  }
  const double quota = ranks.front().quota;
  const double usable = quota > 0 ? std::min(quota, double(cores)) : double(cores);
  if (double(threads) > std::max(1.0, usable)) {
    return fmt::format(
        "{} rank(s) of a host have {} threads in all, but {:g} cores, and wait for each other; "
        "start fewer ranks, or lower parallel.threads or OMP_NUM_THREADS",
        ranks.size(), threads, usable);
  }
  if (2 * cores < offered) {
    return fmt::format(
        "mpirun has bound the ranks of a host to {} of its {} cores; give it --bind-to none", cores,
        offered);
  }
  return "";
}

std::string share_cores(dist::World& world, std::int64_t wanted) {
  const bool is_set = wanted == 0 && std::getenv("OMP_NUM_THREADS") != nullptr;
  if (is_set) wanted = at::get_num_threads();
  const at::Tensor facts = at::zeros({3 + kWords}, at::kLong);
  auto* fact = facts.mutable_data_ptr<std::int64_t>();
  const std::string host = world.host();
  fact[0] = std::bit_cast<std::int64_t>(dist::content_hash(std::as_bytes(std::span(host))));
  fact[1] = std::bit_cast<std::int64_t>(cpu_quota());
  fact[2] = wanted;
  const auto mine = cores_of(0);
  for (std::size_t core = 0; core < mine.size(); ++core) {
    if (mine[core]) fact[3 + core / 64] |= std::int64_t(std::uint64_t{1} << core % 64);
  }
  const at::Tensor all = dist::gather_facts(world.control(), facts);
  std::vector<RankCores> ranks;
  std::size_t me = 0;
  for (int rank = 0; rank < world.size(); ++rank) {
    const auto* row = all[rank].const_data_ptr<std::int64_t>();
    if (row[0] != fact[0]) continue;
    if (rank == world.rank()) me = ranks.size();
    RankCores cores{std::vector<bool>(mine.size()), std::bit_cast<double>(row[1]), row[2]};
    for (std::size_t core = 0; core < mine.size(); ++core) {
      cores.allowed[core] = (std::uint64_t(row[3 + core / 64]) >> core % 64 & 1) != 0;
    }
    ranks.push_back(std::move(cores));
  }
  if (!is_set) {
    at::set_num_threads(static_cast<int>(wanted > 0 ? wanted : threads_of(ranks, me)));
  }
  // Open MPI's mpirun binds its ranks, but not itself.
  const bool bound = std::getenv("OMPI_COMM_WORLD_SIZE") != nullptr;
  if (world.rank() != 0) return "";
  return trouble_with(ranks, bound ? count(cores_of(getppid())) : 0);
}

}  // namespace laterna::launch
