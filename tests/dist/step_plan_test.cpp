// Placement and step plan as plain values, without ranks: every assignment is computed once, by a
// rank that holds the candidate; what one rank plans to send is what the other plans to receive.
#include "dist/experts/step_plan.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <numeric>
#include <set>

#include "dist/comm/local_communicator.h"
#include "dist/experts/sample_placement.h"

namespace laterna::dist {
namespace {

TEST(Placement, GivesEveryCandidateToOneShard) {
  for (std::int64_t n = 1; n <= 8; ++n) {
    for (std::int64_t ranks = 1; ranks <= 9; ++ranks) {
      const Placement placement(n, ranks);
      EXPECT_EQ(placement.shards(), std::min(n, ranks));
      for (std::int64_t layer = 0; layer < 5; ++layer) {
        for (std::int64_t j = 0; j < n; ++j) {
          const auto replicas = placement.replicas(layer, j);
          ASSERT_FALSE(replicas.empty());
          std::set<std::int64_t> shards;
          for (const auto rank : replicas) {
            EXPECT_TRUE(placement.holds(rank, layer, j));
            shards.insert(placement.shard_of(rank));
          }
          EXPECT_EQ(shards.size(), 1U);
          if (ranks <= n) {
            EXPECT_EQ(replicas.size(), 1U);
          }
        }
        for (std::int64_t rank = 0; rank < ranks; ++rank) {
          const auto held = static_cast<std::int64_t>(placement.held(rank, layer).size());
          EXPECT_GE(held, n / placement.shards());
          EXPECT_LE(held, (n + placement.shards() - 1) / placement.shards());
        }
      }
    }
  }
  EXPECT_THROW(Placement(0, 1), std::invalid_argument);
  EXPECT_THROW(Placement(1, 0), std::invalid_argument);
}

TEST(Placement, RotatesTheLargerShardWithTheLayer) {
  const Placement placement(3, 2);
  EXPECT_EQ(placement.held(0, 0), (std::vector<std::int64_t>{0, 2}));
  EXPECT_EQ(placement.held(1, 0), (std::vector<std::int64_t>{1}));
  EXPECT_EQ(placement.held(0, 1), (std::vector<std::int64_t>{1}));
  EXPECT_EQ(placement.held(1, 1), (std::vector<std::int64_t>{0, 2}));
}

/// Returns routing that select k of N candidates at random for each sample and spiking step.
LayerRouting random_routing(std::int64_t layer, std::int64_t steps, std::int64_t samples,
                            std::int64_t n, std::int64_t k) {
  const at::Tensor order = at::rand({steps, samples, n}).argsort(-1, false).argsort(-1, false);
  return {layer, at::rand({steps, samples, n}, at::kDouble), order.lt(k).to(at::kByte)};
}

TEST(LayerPlan, ComputesEveryAssignmentOnceAndAgreesWithItsPeers) {
  at::manual_seed(5);
  for (const auto& [n, k] : {std::pair{2, 1}, std::pair{3, 2}, std::pair{5, 2}, std::pair{7, 3}}) {
    for (const std::int64_t ranks : {1, 2, 3, 4, 7}) {
      const Placement placement(n, ranks);
      std::vector<std::int64_t> first{0};  // uneven, and the last rank has no sample
      for (std::int64_t r = 0; r < ranks; ++r) {
        first.push_back(first.back() + (r + 1 == ranks && r > 0 ? 0 : 3 - r % 3));
      }
      const std::int64_t total = first.back(), steps = 3;
      const LayerRouting routing = random_routing(4, steps, total, n, k);
      std::vector<LayerPlan> plans;
      for (std::int64_t r = 0; r < ranks; ++r) {
        plans.push_back(plan_layer(placement, r, routing, first));
      }
      at::Tensor served = at::zeros({steps, total, n}, at::kByte);
      std::map<std::pair<std::int64_t, std::int64_t>, std::set<std::int64_t>> server_of;
      for (std::int64_t r = 0; r < ranks; ++r) {
        const auto& plan = plans[r];
        const auto held = std::ssize(plan.held), batch = first[r + 1] - first[r];
        ASSERT_EQ(std::ssize(plan.local), steps * batch * held);
        ASSERT_EQ(std::ssize(plan.remote), std::ssize(plan.received) * held);
        const auto assign = [&](std::int64_t t, std::int64_t sample, std::int64_t h) {
          served[t][sample][plan.held[h]] += 1;
          server_of[{sample, plan.held[h]}].insert(r);
        };
        for (std::int64_t t = 0; t < steps; ++t) {
          for (std::int64_t b = 0; b < batch; ++b) {
            for (std::int64_t h = 0; h < held; ++h) {
              if (plan.local[(t * batch + b) * held + h]) assign(t, first[r] + b, h);
            }
          }
        }
        for (std::int64_t row = 0; row < std::ssize(plan.received); ++row) {
          bool any = false;
          for (std::int64_t h = 0; h < held; ++h) {
            if (!plan.remote[row * held + h]) continue;
            any = true;
            assign(plan.received[row] / total, plan.received[row] % total, h);
          }
          EXPECT_TRUE(any);  // every received block has an assignment
        }
        // The token blocks that other ranks receive from this rank are, in order, those that it
        // sends.
        std::vector<std::int64_t> expected;
        for (std::int64_t t = 0; t < steps; ++t) {
          for (std::int64_t other = 0; other < ranks; ++other) {
            EXPECT_EQ(plan.send_rows[t][other], plans[other].receive_rows[t][r]);
            for (const auto block : plans[other].received) {
              const std::int64_t sample = block % total;
              if (block / total != t || sample < first[r] || sample >= first[r + 1]) continue;
              expected.push_back(t * batch + sample - first[r]);
            }
          }
        }
        EXPECT_EQ(plan.sent, expected);
      }
      EXPECT_TRUE(at::equal(served, routing.mask));
      for (const auto& [assignment, servers] : server_of)
        EXPECT_EQ(servers.size(), 1U);  // one rank holds the membranes
    }
  }
}

TEST(LayerPlan, IsAValueThatCanBeComparedAndPrinted) {
  at::manual_seed(6);
  const Placement placement(3, 3);
  const LayerRouting routing = random_routing(1, 2, 6, 3, 2);
  const std::vector<std::int64_t> first{0, 2, 4, 6};
  const MicroBatchPlan micro_batch{plan_layer(placement, 1, routing, first)};
  EXPECT_EQ(micro_batch[0], plan_layer(placement, 1, routing, first));
  EXPECT_NE(micro_batch[0], plan_layer(placement, 2, routing, first));
  const std::string text = to_text({micro_batch});
  EXPECT_NE(text.find("micro-batch 0 layer 1 holds 0: step 0 sends ["), std::string::npos) << text;
}

std::int64_t blocks_that_travel(const Placement& placement, const Routing& routing,
                                const std::vector<std::vector<std::int64_t>>& placed) {
  std::vector<std::int64_t> first{0}, order;
  for (const auto& samples : placed) {
    order.insert(order.end(), samples.begin(), samples.end());
    first.push_back(std::ssize(order));
  }
  std::int64_t blocks = 0;
  for (const auto& layer : routing) {
    const at::Tensor samples_by_rank = at::tensor(order, at::kLong);
    const LayerRouting part{layer.layer, layer.probability.index_select(1, samples_by_rank),
                            layer.mask.index_select(1, samples_by_rank)};
    for (std::int64_t rank = 0; rank < placement.ranks(); ++rank) {
      blocks += std::ssize(plan_layer(placement, rank, part, first).sent);
    }
  }
  return blocks;
}

TEST(SamplePlacement, ShortensTheEstimatedStep) {
  at::manual_seed(8);
  for (const std::int64_t ranks : {1, 2, 3, 5}) {
    const Placement placement(3, ranks);
    Routing routing;
    for (std::int64_t layer = 0; layer < 4; ++layer) {
      routing.push_back(random_routing(layer, 2, 8 * ranks - 1, 3, 2));
    }
    std::vector<std::int64_t> counts(ranks, 8);
    counts.back() = 7;
    const auto consecutive = consecutive_samples(counts);
    for (const Costs costs : {Costs{1, 0.5}, Costs{1, 0}, Costs{0, 1}}) {
      const auto placed = place_samples(placement, routing, counts, costs);
      std::set<std::int64_t> all;
      for (std::int64_t rank = 0; rank < ranks; ++rank) {
        EXPECT_EQ(std::ssize(placed[rank]), counts[rank]);
        EXPECT_TRUE(std::is_sorted(placed[rank].begin(), placed[rank].end()));
        all.insert(placed[rank].begin(), placed[rank].end());
      }
      EXPECT_EQ(std::ssize(all), 8 * ranks - 1);
      const double before = estimated_time(placement, routing, consecutive, costs);
      const double after = estimated_time(placement, routing, placed, costs);
      EXPECT_LE(after, before + 1e-9);
      if (costs.block > 0 && ranks > 1) {
        EXPECT_LT(after, before) << ranks;
      }
      EXPECT_EQ(place_samples(placement, routing, counts, costs), placed);
      if (ranks == 2 || ranks == 3) {  // no replicas: one rank can compute a candidate
        EXPECT_LE(blocks_that_travel(placement, routing, placed),
                  blocks_that_travel(placement, routing, consecutive));
      }
    }
  }
}

// Two samples, two ranks, one candidate on each rank: sample 0 selects the candidate of rank 1,
// sample 1 that of rank 0. Consecutive samples transfer both token blocks, swapped samples none.
TEST(SamplePlacement, MatchesAnExampleByHand) {
  const Placement placement(2, 2);  // candidate 0 of layer 0 on rank 0
  const at::Tensor mask = at::tensor({0, 1, 1, 0}, at::kByte).view({1, 2, 2});
  const Routing routing{{0, at::ones({1, 2, 2}), mask}};
  const Costs costs{10, 1};
  EXPECT_EQ(estimated_time(placement, routing, {{0}, {1}}, costs),
            12);  // one assignment, one block sent, one received
  EXPECT_EQ(estimated_time(placement, routing, {{1}, {0}}, costs), 10);
  EXPECT_EQ(place_samples(placement, routing, {1, 1}, costs), (SampleLists{{1}, {0}}));
}

TEST(StepPlan, OneRankSendsNothing) {
  LocalCommunicator alone;
  const Placement placement(3, 1);
  const Routing mine{random_routing(0, 2, 5, 3, 2), random_routing(2, 2, 5, 3, 2)};
  const auto plan = plan_step(alone, placement, mine, {5}, 2, 3);
  EXPECT_EQ(plan.samples, (std::vector<std::int64_t>{0, 1, 2, 3, 4}));
  EXPECT_EQ(plan_step(alone, placement, {}, {5}, 2, 0).samples, plan.samples);
  ASSERT_EQ(plan.micro_batches.size(), 3U);
  std::int64_t samples = 0;
  for (const auto& micro_batch : plan.micro_batches) {
    ASSERT_EQ(micro_batch.size(), 2U);
    EXPECT_TRUE(micro_batch[1].sent.empty() && micro_batch[1].received.empty());
    samples += micro_batch[1].samples;
    EXPECT_EQ(std::accumulate(micro_batch[1].local.begin(), micro_batch[1].local.end(), 0),
              2 * 2 * micro_batch[1].samples);
  }
  EXPECT_EQ(samples, 5);
}

}  // namespace
}  // namespace laterna::dist
