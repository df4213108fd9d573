// Transfers of token blocks between real ranks, against the same movement by indexing on one rank.
#include "dist/experts/exchange.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include "dist/experts/sample_placement.h"
#include "tests/ranks/ranks.h"

namespace laterna::tests {
namespace {

using dist::Exchange;
using dist::LayerRouting;
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
    routing.mask = at::rand({kSteps, total, kCandidates})
                       .argsort(-1, false)
                       .argsort(-1, false)
                       .lt(2)
                       .to(at::kByte);
    routing.probability = at::rand({kSteps, total, kCandidates}, at::kDouble);
    spikes = at::rand({kSteps, total, kElements}).lt(0.4).to(at::kDouble);
  }
  at::Tensor mine(const at::Tensor& all) const {
    const int r = world().rank();
    return all.narrow(1, offsets[r], counts[r]).contiguous();
  }
  std::vector<std::int64_t> counts, offsets{0};
  LayerRouting routing;
  at::Tensor spikes;  // [T, total, elements]
};

dist::StepPlan plan_of(const GroupBatch& all, const Placement& placement) {
  const LayerRouting mine{0, all.mine(all.routing.probability), all.mine(all.routing.mask)};
  return dist::plan_step(world().control(), placement, {mine}, all.counts, 8, 1);
}

TEST(RanksExchange, PlansMatchThoseMadeFromTheWholeRouting) {
  const GroupBatch all;
  const Placement placement(kCandidates, world().size());
  const auto plan = plan_of(all, placement);
  const auto placed = dist::place_samples(placement, {all.routing}, all.counts, {});
  EXPECT_EQ(plan.samples, placed[world().rank()]);
  std::vector<std::int64_t> order;
  for (const auto& samples : placed) order.insert(order.end(), samples.begin(), samples.end());
  const at::Tensor by_rank = at::tensor(order, at::kLong);
  const LayerRouting routing{0, all.routing.probability.index_select(1, by_rank),
                             all.routing.mask.index_select(1, by_rank)};
  const auto& layer = plan.micro_batches[0][0];
  EXPECT_EQ(layer, dist::plan_layer(placement, world().rank(), routing, all.offsets));
  const at::Tensor rows = routing.probability.flatten(0, 1);
  const std::int64_t held = std::ssize(layer.held);
  for (std::int64_t i = 0; i < std::ssize(layer.received); ++i) {
    for (std::int64_t h = 0; h < held; ++h) {
      EXPECT_EQ(layer.gates[i * held + h], rows[layer.received[i]][layer.held[h]].item<double>());
    }
  }
}

TEST(RanksExchange, TransfersMoveTheRightBlocks) {
  const GroupBatch all;
  const Placement placement(kCandidates, world().size());
  const auto plan = dist::plan_layer(placement, world().rank(), all.routing, all.offsets);
  const std::int64_t sent = std::ssize(plan.sent), received = std::ssize(plan.received);
  const at::Tensor to_send = at::tensor(plan.sent, at::kLong);
  for (const auto dtype : {at::kDouble, at::kBFloat16, at::kByte}) {
    Exchange exchange(world().control());
    const at::Tensor blocks = all.mine(all.spikes).view({-1, kElements}).to(dtype);
    const at::Tensor here = at::full({received, kElements}, 7, dtype);
    auto pending = exchange.send(Transfer::dispatch, plan, blocks.index_select(0, to_send), here);
    pending.poll();
    pending.wait();
    const at::Tensor expected =
        all.spikes.view({-1, kElements}).index_select(0, at::tensor(plan.received, at::kLong));
    EXPECT_TRUE(at::equal(here, expected.to(dtype)));

    // There and back: the result is what was sent.
    const at::Tensor away = at::empty({received, kElements}, dtype);
    const at::Tensor back = at::empty({sent, kElements}, dtype);
    const at::Tensor gone = (blocks * 3).index_select(0, to_send);
    exchange.send(Transfer::combine_backward, plan, gone, away).wait();
    exchange.send(Transfer::combine, plan, away, back).wait();
    EXPECT_TRUE(at::equal(back, gone));

    // Scalars return to their token block: here its number x as (x, x + 0.5).
    const at::Tensor numbers = at::tensor(plan.received, at::kLong).to(at::kDouble);
    const at::Tensor scalars = at::stack({numbers, numbers + 0.5}, 1);  // [R, 2]
    const at::Tensor scalars_back = at::empty({sent, 2}, at::kDouble);
    exchange.send(Transfer::dispatch_backward, plan, scalars, scalars_back, dist::Rows::scalars)
        .wait();
    const std::int64_t batch = all.counts[world().rank()];
    for (std::int64_t i = 0; i < sent; ++i) {
      const std::int64_t step = plan.sent[i] / batch, sample = plan.sent[i] % batch;
      const auto number = double(step * plan.samples + all.offsets[world().rank()] + sample);
      EXPECT_EQ(scalars_back[i][0].item<double>(), number);
      EXPECT_EQ(scalars_back[i][1].item<double>(), number + 0.5);
    }

    const auto& traffic = exchange.traffic();
    const auto element = static_cast<std::int64_t>(c10::elementSize(dtype));
    EXPECT_EQ(traffic[0].blocks, sent);
    EXPECT_EQ(traffic[0].bytes, sent * kElements * element);
    EXPECT_EQ(traffic[1].bytes, received * kElements * element);
    EXPECT_EQ(traffic[2].bytes, sent * kElements * element);
    EXPECT_EQ(traffic[3].blocks, 0);  // scalars are not counted as token blocks
    EXPECT_EQ(traffic[3].bytes, received * 2 * 8);
  }
}

}  // namespace
}  // namespace laterna::tests
