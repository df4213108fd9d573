// The cost model where the answer is known: with all candidates selected, every token block goes to
// every other rank.
#include "launch/inspection/cost_model.h"

#include <gtest/gtest.h>

namespace laterna::launch {
namespace {

Config small(std::int64_t selected) {
  Config config = parse_config("", "test",
                               {"model.image_size=8", "model.width=32", "model.depth=4",
                                "model.heads=4", "model.candidates=3", "training.batch=12"});
  config.model.selected = selected;
  return config;
}

TEST(CostModel, CountsTransfersWhenAllCandidatesAreSelected) {
  const auto costs = layout_costs(small(3), {3, 1e6, 10});
  ASSERT_EQ(costs.size(), 2U);  // EP 1 and 3
  EXPECT_EQ(costs[0].expert, 1);
  EXPECT_EQ(costs[0].data, 3);
  EXPECT_EQ(costs[0].exchange_bytes, 0);
  EXPECT_EQ(costs[0].exchange_seconds, 0);
  const auto& spread = costs[1];
  // 4 samples per rank, 4 layers, 2 spiking steps, 2 other ranks; as many are received as sent.
  const double blocks = 4 * 4 * 2 * 2, elements = 16 * 32;
  EXPECT_DOUBLE_EQ(spread.exchange_bytes, blocks * (elements / 8 + 3 * elements * 4 + 3 * 4));
  EXPECT_DOUBLE_EQ(spread.imbalance, 1);
  EXPECT_DOUBLE_EQ(spread.exchange_seconds, spread.exchange_bytes / 0.7e6);
  EXPECT_DOUBLE_EQ(spread.compute_seconds, 4.0 / 10);
  EXPECT_DOUBLE_EQ(spread.samples_per_second, 12 / spread.step_seconds);
}

TEST(CostModel, ExpertParallelismSavesMemoryAndGradients) {
  const auto costs = layout_costs(small(2), {6, 1e6, 10});
  ASSERT_EQ(costs.size(), 3U);
  for (std::size_t i = 1; i < costs.size(); ++i) {
    EXPECT_LT(costs[i].memory_bytes, costs[i - 1].memory_bytes);
    EXPECT_LT(costs[i].gradient_bytes, costs[i - 1].gradient_bytes);
    EXPECT_GT(costs[i].exchange_bytes, costs[i - 1].exchange_bytes);
    EXPECT_EQ(costs[i].expert * costs[i].data, 6);
  }
  // In an all-reduce over six ranks each rank sends 5/6 of the bytes twice.
  EXPECT_NEAR(costs[0].gradient_bytes, 2 * 5.0 / 6 * 4 * double(costs[0].parameters), 1);
}

TEST(CostModel, HalvesDenseTransfersInBfloat16) {
  Config config = small(3);
  const double wide = layout_costs(config, {3, 1e6, 10})[1].exchange_bytes;
  config.training.precision = "bfloat16";
  const double half = layout_costs(config, {3, 1e6, 10})[1].exchange_bytes;
  EXPECT_NEAR(half / wide, 0.5, 0.02);
}

TEST(CostModel, ParsesLinkRates) {
  EXPECT_DOUBLE_EQ(link_rate("400Gbit"), 50e9);
  EXPECT_DOUBLE_EQ(link_rate("1.5Gbit"), 1.5e9 / 8);
  EXPECT_DOUBLE_EQ(link_rate("100Mbit"), 12.5e6);
  for (const char* bad : {"", "fast", "400", "400GB", "-1Gbit", "0Gbit", "1Gbit/s"}) {
    EXPECT_THROW(link_rate(bad), UsageError) << bad;
  }
}

}  // namespace
}  // namespace laterna::launch
