// The limits that containers, Slurm and systemd set by Linux control groups, version 2 or 1.
#pragma once

#include <functional>
#include <string>

namespace laterna::launch {

/// Where the kernel shows control groups; tests have files of their own.
struct CgroupPaths {
  std::string membership = "/proc/self/cgroup";  // which groups this process is in
  std::string root = "/sys/fs/cgroup";
};

/// Returns the CPU quota in cores' worth of time, the least of this process's group and those above
/// it; 0 where there is none.
double cpu_quota(const CgroupPaths& paths = {});

/// Returns the bytes that this process's group and those above it may still use, the least of them;
/// infinity where there is no limit. Cached files, which the kernel would drop, do not count as
/// used.
double free_group_memory(const CgroupPaths& paths = {});

}  // namespace laterna::launch
