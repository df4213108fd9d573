// Transfers of token blocks between real ranks, against the same movement by indexing on one rank.
#include "dist/experts/exchange.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include "dist/experts/sample_placement.h"
#include "tests/ranks/ranks.h"

namespace laterna::tests {
namespace {

using dist::Choices;
using dist::Exchange;
using dist::Placement;
using dist::Transfer;

constexpr std::int64_t kSteps = 3, kElements = 21, kCandidates = 3;

/// The samples of every rank (rank r has 2 + r % 2, the last has none), the same on all ranks.
struct GroupBatch {
  GroupBatch() {
    at::manual_seed(11);
    const int size = world().size();
    for (int r = 0; r < size; ++r) {
      counts.push_back(r + 1 == size && r > 0 ? 0 : 2 + r % 2);
      offsets.push_back(offsets.back() + counts.back());
    }
    const auto total = offsets.back();
    choices.mask = at::rand({kSteps, total, kCandidates})
                       .argsort(-1, false)
                       .argsort(-1, false)
                       .lt(2)
                       .to(at::kByte);
    choices.gate = at::rand({kSteps, total, kCandidates}, at::kDouble);
    spikes = at::rand({kSteps, total, kElements}).lt(0.4).to(at::kDouble);
  }
  at::Tensor mine(const at::Tensor& all) const {
    const int r = world().rank();
    return all.narrow(1, offsets[r], counts[r]).contiguous();
  }
  std::vector<std::int64_t> counts, offsets{0};
  Choices choices;
  at::Tensor spikes;  // [T, total, elements]
};

dist::StepPlan plan_of(const GroupBatch& all, const Placement& placement) {
  const Choices mine{0, all.mine(all.choices.mask), all.mine(all.choices.gate)};
  return dist::plan_step(world().control(), placement, {mine}, all.counts, 8, 1);
}

TEST(RanksExchange, PlansMatchThoseMadeFromAllChoices) {
  const GroupBatch all;
  const Placement placement(kCandidates, world().size());
  const auto plan = plan_of(all, placement);
  const auto placed = dist::place_samples(placement, {all.choices}, all.counts, {});
  EXPECT_EQ(plan.samples, placed[world().rank()]);
  std::vector<std::int64_t> order;
  for (const auto& samples : placed) order.insert(order.end(), samples.begin(), samples.end());
  const at::Tensor by_rank = at::tensor(order, at::kLong);
  const Choices choices{0, all.choices.mask.index_select(1, by_rank),
                        all.choices.gate.index_select(1, by_rank)};
  const auto& layer = plan.micro_batches[0].layers[0];
  EXPECT_EQ(layer, dist::plan_layer(placement, world().rank(), choices, all.offsets));
  const at::Tensor rows = choices.gate.flatten(0, 1);
  for (std::int64_t i = 0; i < std::ssize(layer.received); ++i) {
    for (std::int64_t h = 0; h < std::ssize(layer.held); ++h) {
      EXPECT_EQ(plan.micro_batches[0].gates[0][i][h].item<double>(),
                rows[layer.received[i]][layer.held[h]].item<double>());
    }
  }
}

TEST(RanksExchange, TransfersMoveTheRightBlocks) {
  const GroupBatch all;
  const Placement placement(kCandidates, world().size());
  const auto plan = dist::plan_layer(placement, world().rank(), all.choices, all.offsets);
  const std::int64_t sent = std::ssize(plan.sent), received = std::ssize(plan.received);
  for (const bool bfloat16 : {false, true}) {
    Exchange exchange(world().control(), bfloat16);
    const at::Tensor blocks = all.mine(all.spikes).view({-1, kElements});
    const at::Tensor here = at::full({received, kElements}, 7.0, at::kDouble);
    auto pending = exchange.send_out(Transfer::dispatch, plan, blocks, here);
    pending.poll();
    pending.wait();
    const at::Tensor expected =
        all.spikes.view({-1, kElements}).index_select(0, at::tensor(plan.received, at::kLong));
    EXPECT_TRUE(at::equal(here, expected));

    // Dense, there and back: the result is what was sent, rounded once where the wire format is
    // bfloat16.
    const at::Tensor dense = at::randn({blocks.size(0), kElements}, at::kDouble);
    const at::Tensor away = at::empty({received, kElements}, at::kDouble);
    const at::Tensor back = at::empty({sent, kElements}, at::kDouble);
    exchange.send_out(Transfer::combine_backward, plan, dense, away).wait();
    exchange.send_back(Transfer::combine, plan, away, back).wait();
    const at::Tensor gone = dense.index_select(0, at::tensor(plan.sent, at::kLong));
    EXPECT_TRUE(at::equal(back, bfloat16 ? gone.to(at::kBFloat16).to(at::kDouble) : gone));

    // Scalars return to their token block: here its number x as (x, x + 0.5).
    const at::Tensor numbers = at::tensor(plan.received, at::kLong).to(at::kDouble);
    const at::Tensor scalars = at::stack({numbers, numbers + 0.5}, 1);  // [R, 2]
    const at::Tensor scalars_back = at::empty({sent, 2}, at::kDouble);
    exchange.send_scalars_back(plan, scalars, scalars_back).wait();
    const std::int64_t batch = all.counts[world().rank()];
    for (std::int64_t i = 0; i < sent; ++i) {
      const std::int64_t step = plan.sent[i] / batch, sample = plan.sent[i] % batch;
      const auto number = double(step * plan.samples + all.offsets[world().rank()] + sample);
      EXPECT_EQ(scalars_back[i][0].item<double>(), number);
      EXPECT_EQ(scalars_back[i][1].item<double>(), number + 0.5);
    }

    const auto& traffic = exchange.traffic();
    EXPECT_EQ(traffic[0].blocks, sent);
    EXPECT_EQ(traffic[0].bytes, sent * 3);  // 21 bits
    EXPECT_EQ(traffic[1].bytes, received * kElements * (bfloat16 ? 2 : 8));
    EXPECT_EQ(traffic[2].bytes, sent * kElements * (bfloat16 ? 2 : 8));
    EXPECT_EQ(traffic[3].bytes, received * 2 * 8);
  }
}

}  // namespace
}  // namespace laterna::tests
