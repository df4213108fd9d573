// What a rank does, as another process finds it: current, consistent, and refused where it is not.
#include "dist/activity.h"

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

TEST(Activity, WithoutAFileKeepsNothing) {
  Activity activity;
  const auto scope = activity.enter("forward", 3);
  activity.waits_for(1);
  activity.end();
}

TEST(Activity, ShowsTheInnermostScopeAndThenTheOneAround) {
  const data::ScratchFolder folder;
  const auto file = folder / "rank-00007";
  Activity activity;
  activity.open(file, 7, "host-a");
  activity.set_step(12);
  {
    const auto outer = activity.enter("forward");
    {
      const auto inner = activity.enter("exchange of sums", 3);
      activity.waits_for(2);
      const auto record = Activity::read(file);
      ASSERT_TRUE(record);
      EXPECT_EQ(record->rank, 7);
      EXPECT_EQ(record->pid, getpid());
      EXPECT_EQ(record->host, "host-a");
      EXPECT_EQ(record->step, 12);
      EXPECT_EQ(record->operation, "exchange of sums");
      EXPECT_EQ(record->layer, 3);
      EXPECT_EQ(record->peer, 2);
      EXPECT_GT(record->since, 1.7e9);
      EXPECT_FALSE(record->ended);
      activity.waits_for(-1);
    }
    EXPECT_EQ(Activity::read(file)->operation, "forward");
    EXPECT_EQ(Activity::read(file)->layer, -1);
    EXPECT_EQ(Activity::read(file)->peer, -1);
  }
  activity.end();
  EXPECT_TRUE(Activity::read(file)->ended);
}

TEST(Activity, OutlivesAProcessThatIsKilled) {
  const data::ScratchFolder folder;
  const auto file = folder / "rank-00000";
  const pid_t child = fork();
  if (child == 0) {
    Activity activity;
    activity.open(file, 0, "here");
    const auto scope = activity.enter("backward");
    kill(getpid(), SIGKILL);
  }
  int status = 0;
  waitpid(child, &status, 0);
  EXPECT_TRUE(WIFSIGNALED(status));
  const auto record = Activity::read(file);
  ASSERT_TRUE(record);
  EXPECT_EQ(record->operation, "backward");
  EXPECT_EQ(record->pid, child);
  EXPECT_FALSE(record->ended);
}

TEST(Activity, AnExceptionLeavesWhereItHappened) {
  const data::ScratchFolder folder;
  Activity activity;
  activity.open(folder / "rank", 0, "here");
  try {
    const auto scope = activity.enter("optimiser");
    throw std::runtime_error("x");
  } catch (const std::runtime_error&) {
  }
  EXPECT_EQ(Activity::read(folder / "rank")->operation, "optimiser");
}

TEST(Activity, OtherFilesAreNone) {
  const data::ScratchFolder folder;
  EXPECT_FALSE(Activity::read(folder / "missing"));
  std::ofstream(folder / "short") << "LATERNA1";
  EXPECT_FALSE(Activity::read(folder / "short"));
  std::ofstream(folder / "foreign") << std::string(5000, 'x');
  EXPECT_FALSE(Activity::read(folder / "foreign"));
  Activity activity;
  EXPECT_THROW(activity.open(folder / "no" / "folder", 0, "here"), std::runtime_error);
}

}  // namespace
}  // namespace laterna::dist
