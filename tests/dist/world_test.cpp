// A program started without a launcher is a world of one rank, without MPI.
#include "dist/world.h"

#include <gtest/gtest.h>

#include <cstdlib>

#include "dist/agreement.h"
#include "dist/comm/local_communicator.h"
#include "dist/replica_check.h"

namespace laterna::dist {
namespace {

TEST(World, UsesTheLocalBackEndWithoutALauncher) {
  World world;
  EXPECT_EQ(world.rank(), 0);
  EXPECT_EQ(world.size(), 1);
  EXPECT_EQ(world.local_rank(), 0);
  EXPECT_EQ(world.local_size(), 1);
  EXPECT_FALSE(world.host().empty());
  for (Communicator* each : {&world.control(), &world.reduction(), &world.exchange()}) {
    EXPECT_NE(dynamic_cast<LocalCommunicator*>(each), nullptr);
  }
  world.finalize();
}

// srun without its MPI plug-in starts tasks that do not know of each other.
TEST(World, CountsTasksThatDidNotJoin) {
  EXPECT_EQ(World().tasks(), 1);
  setenv("SLURM_STEP_NUM_TASKS", "4", 1);
  const World world;
  EXPECT_EQ(world.size(), 1);
  EXPECT_EQ(world.tasks(), 4);
  unsetenv("SLURM_STEP_NUM_TASKS");
}

TEST(WorldDeathTest, AbortEndsWithTheStatus) {
  World world;
  EXPECT_EXIT(world.abort(3), testing::ExitedWithCode(3), "");
}

TEST(Agreement, OneRankAgreesWithItself) {
  LocalCommunicator local;
  EXPECT_FALSE(agree_on_failure(local, std::nullopt));
  const auto failure = agree_on_failure(local, Failure{2, "no key 'widht'"});
  ASSERT_TRUE(failure);
  EXPECT_EQ(failure->rank, 0);
  EXPECT_EQ(failure->status, 2);
  EXPECT_EQ(failure->message, "no key 'widht'");
  EXPECT_EQ(failure->ranks_failed, 1);
  EXPECT_TRUE(agree_on_failure(local, Failure{1, ""}));
  EXPECT_TRUE(ranks_that_differ(local, "text").empty());
}

TEST(ReplicaCheck, OneRankAgreesWithItself) {
  LocalCommunicator local;
  const std::vector<std::string> names = {"a", "b"};
  const std::vector<at::Tensor> tensors = {at::ones({3}).requires_grad_(), at::empty({0})};
  EXPECT_FALSE(find_divergence(local, names, tensors));
  EXPECT_FALSE(find_divergence(local, {}, {}));
  EXPECT_THROW(find_divergence(local, names, std::span(tensors).first(1)), std::invalid_argument);
}

}  // namespace
}  // namespace laterna::dist
