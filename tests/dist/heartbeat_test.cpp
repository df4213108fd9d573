// A rank's heartbeat as another process reads it: current and consistent; other files are refused.
#include "dist/heartbeat.h"

#include <gtest/gtest.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <stdexcept>

#include "tests/data/scratch_folder.h"

namespace laterna::dist {
namespace {

TEST(Heartbeat, RecordsNothingWithoutAFile) {
  Heartbeat heartbeat;
  const auto scope = heartbeat.enter("forward", 3);
  heartbeat.set_peer(1);
  heartbeat.end();
}

TEST(Heartbeat, ShowsTheInnermostScopeThenTheEnclosingOne) {
  const data::ScratchFolder folder;
  const auto file = folder / "rank-00007";
  Heartbeat heartbeat;
  heartbeat.open(file, 7, "host-a");
  heartbeat.set_step(12);
  {
    const auto outer = heartbeat.enter("forward");
    {
      const auto inner = heartbeat.enter("combine", 3);
      heartbeat.set_peer(2);
      const auto record = Heartbeat::read(file);
      ASSERT_TRUE(record);
      EXPECT_EQ(record->rank, 7);
      EXPECT_EQ(record->pid, getpid());
      EXPECT_EQ(record->host, "host-a");
      EXPECT_EQ(record->step, 12);
      EXPECT_EQ(record->operation, "combine");
      EXPECT_EQ(record->layer, 3);
      EXPECT_EQ(record->peer, 2);
      EXPECT_GT(record->since, 1.7e9);
      EXPECT_FALSE(record->ended);
      heartbeat.set_peer(-1);
    }
    EXPECT_EQ(Heartbeat::read(file)->operation, "forward");
    EXPECT_EQ(Heartbeat::read(file)->layer, -1);
    EXPECT_EQ(Heartbeat::read(file)->peer, -1);
  }
  heartbeat.end();
  EXPECT_TRUE(Heartbeat::read(file)->ended);
}

TEST(Heartbeat, OutlivesAKilledProcess) {
  const data::ScratchFolder folder;
  const auto file = folder / "rank-00000";
  const pid_t child = fork();
  if (child == 0) {
    Heartbeat heartbeat;
    heartbeat.open(file, 0, "here");
    const auto scope = heartbeat.enter("backward");
    kill(getpid(), SIGKILL);
  }
  int status = 0;
  waitpid(child, &status, 0);
  EXPECT_TRUE(WIFSIGNALED(status));
  const auto record = Heartbeat::read(file);
  ASSERT_TRUE(record);
  EXPECT_EQ(record->operation, "backward");
  EXPECT_EQ(record->pid, child);
  EXPECT_FALSE(record->ended);
}

TEST(Heartbeat, KeepsTheOperationThatThrew) {
  const data::ScratchFolder folder;
  Heartbeat heartbeat;
  heartbeat.open(folder / "rank", 0, "here");
  try {
    const auto scope = heartbeat.enter("optimiser");
    throw std::runtime_error("x");
  } catch (const std::runtime_error&) {
  }
  EXPECT_EQ(Heartbeat::read(folder / "rank")->operation, "optimiser");
}

TEST(Heartbeat, RefusesOtherFiles) {
  const data::ScratchFolder folder;
  EXPECT_FALSE(Heartbeat::read(folder / "missing"));
  std::ofstream(folder / "short") << "LATERNA1";
  EXPECT_FALSE(Heartbeat::read(folder / "short"));
  std::ofstream(folder / "foreign") << std::string(5000, 'x');
  EXPECT_FALSE(Heartbeat::read(folder / "foreign"));
  Heartbeat heartbeat;
  EXPECT_THROW(heartbeat.open(folder / "no" / "folder", 0, "here"), std::runtime_error);
}

}  // namespace
}  // namespace laterna::dist
