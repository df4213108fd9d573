// The back end of one rank: gathers and all-to-alls copy, sums leave the tensor unchanged.
#include "dist/comm/local_communicator.h"

#include <gtest/gtest.h>

#include <array>
#include <stdexcept>

namespace laterna::dist {
namespace {

using Rows = std::array<std::int64_t, 1>;

TEST(LocalCommunicator, IsRankZeroOfOne) {
  LocalCommunicator local;
  EXPECT_EQ(local.rank(), 0);
  EXPECT_EQ(local.size(), 1);
  EXPECT_TRUE(local.barrier()->test());
}

TEST(LocalCommunicator, SumsAndBroadcastsLeaveTheTensorUnchanged) {
  LocalCommunicator local;
  const at::Tensor tensor = at::arange(6, at::kDouble).view({2, 3});
  const at::Tensor before = tensor.clone();
  local.all_reduce(tensor)->wait();
  local.broadcast(tensor, 0)->wait();
  EXPECT_TRUE(at::equal(tensor, before));
}

TEST(LocalCommunicator, GathersAndExchangesCopies) {
  LocalCommunicator local;
  for (const at::ScalarType type : {at::kFloat, at::kBFloat16, at::kByte, at::kBool, at::kLong}) {
    const at::Tensor mine = at::arange(12).remainder(2).to(type).view({4, 3});
    const at::Tensor all = at::zeros({1, 4, 3}, mine.options());
    local.all_gather(mine, all)->wait();
    EXPECT_TRUE(at::equal(all[0], mine));
    const at::Tensor received = at::zeros_like(mine);
    local.all_to_all_v(mine, Rows{4}, received, Rows{4})->wait();
    EXPECT_TRUE(at::equal(received, mine));
  }
}

TEST(LocalCommunicator, MovesEmptyTensors) {
  LocalCommunicator local;
  const at::Tensor none = at::empty({0, 3});
  local.all_to_all_v(none, Rows{0}, at::empty({0, 3}), Rows{0})->wait();
  local.all_gather(none, at::empty({1, 0, 3}))->wait();
  local.all_reduce(none)->wait();
}

TEST(LocalCommunicator, GathersFromParametersOutsideAutograd) {
  LocalCommunicator local;
  const at::Tensor parameter = at::ones({3}).requires_grad_();
  const at::Tensor all = at::zeros({1, 3});
  local.all_gather(parameter, all)->wait();
  EXPECT_FALSE(all.requires_grad());
  local.all_to_all_v(all.view({3, 1}), Rows{3}, parameter.view({3, 1}).detach(), Rows{3})->wait();
}

// One rank refuses what many ranks refuse, so that a test on one rank finds the same mistakes.
TEST(LocalCommunicator, RefusesInvalidArguments) {
  LocalCommunicator local;
  const at::Tensor a = at::zeros({4, 2});
  EXPECT_THROW(local.all_reduce(a.t()), std::invalid_argument);
  EXPECT_THROW(local.all_reduce(at::Tensor()), std::invalid_argument);
  EXPECT_THROW(local.all_reduce(a.to(at::kBFloat16)), std::invalid_argument);
  EXPECT_THROW(local.all_gather(a, at::zeros({2, 4, 2})), std::invalid_argument);
  EXPECT_THROW(local.all_gather(a, at::zeros({1, 4, 2}, at::kDouble)), std::invalid_argument);
  EXPECT_THROW(local.broadcast(a, 1), std::invalid_argument);
  const std::array<std::int64_t, 2> two = {2, 2};
  EXPECT_THROW(local.all_to_all_v(a, two, a.clone(), Rows{4}), std::invalid_argument);
  EXPECT_THROW(local.all_to_all_v(a, Rows{3}, a.clone(), Rows{4}), std::invalid_argument);
  EXPECT_THROW(local.all_to_all_v(a, Rows{-1}, a.clone(), Rows{4}), std::invalid_argument);
  EXPECT_THROW(local.all_to_all_v(a, Rows{4}, at::zeros({4, 3}), Rows{4}), std::invalid_argument);
  try {
    local.all_to_all_v(a, Rows{3}, a.clone(), Rows{4});
  } catch (const std::invalid_argument& error) {
    EXPECT_STREQ(error.what(), "all_to_all_v: 'send' has 4 rows but its counts add up to 3");
  }
}

}  // namespace
}  // namespace laterna::dist
