// Limits of control groups, read from files like the kernel's.
#include "launch/cgroups.h"

#include <cmath>

#include "tests/data/scratch_folder.h"

namespace laterna::launch {
namespace {

TEST(Cgroups, HaveCpuQuotas) {
  const data::ScratchFolder scratch;
  const CgroupPaths paths{(scratch / "cgroup").string(), (scratch / "fs").string()};
  EXPECT_EQ(cpu_quota(paths), 0);
  data::put(paths.membership, "0::/job/step\n");
  EXPECT_EQ(cpu_quota(paths), 0);
  data::put(scratch / "fs/job/step/cpu.max", "max 100000\n");
  EXPECT_EQ(cpu_quota(paths), 0);
  data::put(scratch / "fs/job/cpu.max", "150000 100000\n");
  EXPECT_EQ(cpu_quota(paths), 1.5);
  data::put(scratch / "fs/cpu.max", "100000 100000\n");
  EXPECT_EQ(cpu_quota(paths), 1);
  data::put(paths.membership, "9:memory:/job\n4:cpu,cpuacct:/docker/7\n");
  data::put(scratch / "fs/cpu,cpuacct/docker/7/cpu.cfs_quota_us", "-1\n");
  data::put(scratch / "fs/cpu,cpuacct/docker/7/cpu.cfs_period_us", "100000\n");
  EXPECT_EQ(cpu_quota(paths), 0);
  data::put(scratch / "fs/cpu,cpuacct/docker/7/cpu.cfs_quota_us", "250000\n");
  EXPECT_EQ(cpu_quota(paths), 2.5);
}

TEST(Cgroups, HaveMemoryLimits) {
  const data::ScratchFolder scratch;
  const CgroupPaths paths{(scratch / "cgroup").string(), (scratch / "fs").string()};
  EXPECT_TRUE(std::isinf(free_group_memory(paths)));
  data::put(paths.membership, "0::/job/step\n");
  data::put(scratch / "fs/job/step/memory.max", "max\n");
  EXPECT_TRUE(std::isinf(free_group_memory(paths)));
  data::put(scratch / "fs/job/memory.max", "3000\n");
  data::put(scratch / "fs/job/memory.current", "1200\n");
  EXPECT_EQ(free_group_memory(paths), 1800);
  data::put(scratch / "fs/job/memory.stat", "anon 500\ninactive_file 400\nactive_file 300\n");
  EXPECT_EQ(free_group_memory(paths), 2500);
  data::put(paths.membership, "7:memory:/slurm/job\n");
  data::put(scratch / "fs/memory/slurm/job/memory.limit_in_bytes", "9223372036854771712\n");
  EXPECT_TRUE(std::isinf(free_group_memory(paths)));
  data::put(scratch / "fs/memory/slurm/job/memory.limit_in_bytes", "1000\n");
  data::put(scratch / "fs/memory/slurm/job/memory.usage_in_bytes", "400\n");
  data::put(scratch / "fs/memory/slurm/job/memory.stat", "total_inactive_file 100\n");
  EXPECT_EQ(free_group_memory(paths), 700);
}

}  // namespace
}  // namespace laterna::launch
