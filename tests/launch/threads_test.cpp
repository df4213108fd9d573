// The threads of a rank, from bindings and quotas that launchers and containers set.
#include "launch/threads.h"

#include <gtest/gtest.h>

namespace laterna::launch {
namespace {

/// A rank that may use cores first .. first + count - 1 of 8.
RankCores on(std::size_t first, std::size_t count, double quota = 0, std::int64_t threads = 0) {
  RankCores cores{std::vector<bool>(8), quota, threads};
  for (std::size_t core = first; core < first + count; ++core) cores.allowed[core] = true;
  return cores;
}

TEST(Threads, AreTheCoresDividedAmongTheRanksThatShareThem) {
  EXPECT_EQ(threads_of({on(0, 8)}, 0), 8);
  EXPECT_EQ(threads_of({on(0, 8), on(0, 8)}, 1), 4);
  EXPECT_EQ(threads_of({on(0, 8), on(0, 8), on(0, 8)}, 0), 2);
  EXPECT_EQ(threads_of({on(0, 4), on(4, 4)}, 1), 4);            // bound to sockets
  EXPECT_EQ(threads_of({on(0, 1), on(1, 1)}, 0), 1);            // bound to cores
  EXPECT_EQ(threads_of({on(2, 3), on(2, 3), on(5, 3)}, 0), 1);  // two on one socket
  EXPECT_EQ(threads_of({on(2, 3), on(2, 3), on(5, 3)}, 2), 3);
  EXPECT_EQ(threads_of(std::vector<RankCores>(9, on(0, 2)), 5), 1);
}

TEST(Threads, KeepToTheQuotaOfTheContainer) {
  EXPECT_EQ(threads_of({on(0, 8, 2)}, 0), 2);
  EXPECT_EQ(threads_of({on(0, 8, 4), on(0, 8, 4)}, 0), 2);
  EXPECT_EQ(threads_of({on(0, 8, 0.5)}, 0), 1);
  EXPECT_EQ(threads_of({on(0, 4, 16)}, 0), 4);
}

TEST(Threads, WarnOfTooManyThreadsAndOfNarrowBindings) {
  EXPECT_EQ(trouble_with({on(0, 8), on(0, 8)}, 8), "");
  EXPECT_EQ(trouble_with({on(0, 4)}, 8), "");
  EXPECT_NE(trouble_with({on(0, 1), on(1, 1)}, 8).find("--bind-to none"), std::string::npos);
  const auto crowded = trouble_with({on(0, 8, 0, 8), on(0, 8, 0, 8)}, 8);
  EXPECT_NE(crowded.find("16 threads"), std::string::npos) << crowded;
  EXPECT_NE(crowded.find("8 cores"), std::string::npos) << crowded;
  EXPECT_NE(trouble_with({on(0, 8, 2, 4)}, 8).find("2 cores"), std::string::npos);
}

}  // namespace
}  // namespace laterna::launch
