// What ranks know about each other, and what they agree on.
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <numeric>

#include "dist/agreement.h"
#include "dist/replica_check.h"
#include "tests/ranks/ranks.h"

namespace laterna::tests {
namespace {

using dist::Failure;

std::vector<int> all_but(int rank) {
  std::vector<int> ranks(world().size());
  std::iota(ranks.begin(), ranks.end(), 0);
  std::erase(ranks, rank);
  return ranks;
}

TEST(RanksWorld, CountsTheRanksOfAHost) {
  EXPECT_GE(world().local_rank(), 0);
  EXPECT_LT(world().local_rank(), world().local_size());
  EXPECT_LE(world().local_size(), world().size());
  const at::Tensor all = at::zeros({world().size()}, at::kLong);
  world().control().all_gather(at::full({1}, world().rank(), at::kLong), all)->wait();
  EXPECT_TRUE(at::equal(all, at::arange(world().size())));
}

TEST(RanksAgreement, NoFailure) {
  EXPECT_FALSE(dist::agree_on_failure(world().control(), std::nullopt));
}

TEST(RanksAgreement, EveryRankLearnsOfTheFailure) {
  for (int failing = 0; failing < world().size(); ++failing) {
    const std::string message = fmt::format("shard {}: checksum differs", failing);
    std::optional<Failure> mine;
    if (world().rank() == failing) mine = Failure{3, message};
    const auto failure = dist::agree_on_failure(world().control(), mine);
    ASSERT_TRUE(failure);
    EXPECT_EQ(failure->rank, failing);
    EXPECT_EQ(failure->status, 3);
    EXPECT_EQ(failure->message, message);
    EXPECT_EQ(failure->ranks_failed, 1);
  }
}

TEST(RanksAgreement, ReportsTheFailureOfTheLowestRank) {
  if (world().size() < 2) return;
  std::optional<Failure> mine;
  if (world().rank() > 0) mine = Failure{1 + world().rank(), std::string(world().rank(), 'x')};
  const auto failure = dist::agree_on_failure(world().control(), mine);
  ASSERT_TRUE(failure);
  EXPECT_EQ(failure->rank, 1);
  EXPECT_EQ(failure->status, 2);
  EXPECT_EQ(failure->message, "x");
  EXPECT_EQ(failure->ranks_failed, world().size() - 1);
}

TEST(RanksAgreement, NamesRanksThatReadAnotherText) {
  EXPECT_TRUE(dist::ranks_that_differ(world().control(), "seed = 0").empty());
  for (int odd = 1; odd < world().size(); ++odd) {
    const char* mine = world().rank() == odd ? "seed = 1" : "seed = 0";
    EXPECT_EQ(dist::ranks_that_differ(world().control(), mine), std::vector<int>{odd});
  }
  const char* mine = world().rank() == 0 ? "seed = 1" : "seed = 0";
  EXPECT_EQ(dist::ranks_that_differ(world().control(), mine), all_but(0));
}

TEST(RanksReplicaCheck, EqualReplicasAreEqual) {
  const std::vector<std::string> names = {"encoder.weight", "empty", "step"};
  const std::vector<at::Tensor> tensors = {at::arange(1000, at::kFloat).requires_grad_(),
                                           at::empty({0}), at::full({}, 5, at::kLong)};
  EXPECT_FALSE(dist::find_divergence(world().control(), names, tensors));
}

TEST(RanksReplicaCheck, NamesTheFirstParameterAndTheRankWithAFlippedBit) {
  const std::vector<std::string> names = {"a", "b", "c"};
  for (int flipped = 0; flipped < world().size() && world().size() > 1; ++flipped) {
    std::vector<at::Tensor> tensors;
    for (int i = 0; i < 3; ++i) tensors.push_back(at::arange(999, at::kFloat).reshape({27, 37}));
    if (world().rank() == flipped) {
      for (const int i : {1, 2}) {  // the lowest bit of one element
        static_cast<std::uint32_t*>(tensors[i].mutable_data_ptr())[500] ^= 1U;
      }
    }
    const auto divergence = dist::find_divergence(world().control(), names, tensors);
    ASSERT_TRUE(divergence);
    EXPECT_EQ(divergence->name, "b");
    // With two ranks neither is in the majority: rank 0's bits count.
    const int named = world().size() == 2 ? 1 : flipped;
    EXPECT_EQ(divergence->ranks, std::vector<int>{named});
  }
}

TEST(RanksWorld, FormsExpertGroupsAndReplicaGroups) {
  for (int expert = 1; expert <= world().size(); ++expert) {
    if (world().size() % expert != 0) {
      EXPECT_THROW(world().form_groups(expert, 1), std::invalid_argument);
      continue;
    }
    const int shards = std::min(expert, 3);
    world().form_groups(expert, shards);
    EXPECT_EQ(world().exchange().size(), expert);
    EXPECT_EQ(world().exchange().rank(), world().rank() % expert);
    const auto ranks_of = [](dist::Communicator& communicator) {
      const at::Tensor all =
          dist::gather_facts(communicator, at::full({1}, world().rank(), at::kLong));
      return std::vector<std::int64_t>(all.const_data_ptr<std::int64_t>(),
                                       all.const_data_ptr<std::int64_t>() + all.numel());
    };
    std::vector<std::int64_t> group, replicas;
    for (int rank = 0; rank < world().size(); ++rank) {
      if (rank / expert == world().rank() / expert) group.push_back(rank);
      if (rank % expert % shards == world().rank() % expert % shards) replicas.push_back(rank);
    }
    EXPECT_EQ(ranks_of(world().exchange()), group);
    EXPECT_EQ(ranks_of(world().replica_group()), replicas);
  }
}

}  // namespace
}  // namespace laterna::tests
