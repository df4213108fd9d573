// The exchange against brute force: every rank knows the token blocks of all ranks and computes by
// plain indexing what must be received, bit for bit, on random plans and on extreme ones. Ranks
// sleep at random, and a communicator that delivers results only on wait() reveals code that reads
// too early. Over NCCL where the ranks have GPUs.
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <chrono>
#include <cmath>
#include <limits>
#include <numeric>
#include <random>
#include <thread>

#include "dist/experts/exchange.h"
#include "model/expert_parallel.h"
#include "model/initialise.h"
#include "tests/ranks/ranks.h"

namespace laterna::tests {
namespace {

using dist::Communicator;
using dist::Exchange;
using dist::LayerPlan;
using dist::LayerRouting;
using dist::Placement;
using dist::Transfer;
using dist::Work;

void sleep_at_random() {
  static std::mt19937 engine(17 + world().rank());
  std::this_thread::sleep_for(std::chrono::microseconds(engine() % 1500));
}

/// Its collectives are never done before wait(); until then the destination holds unusable values.
class LateCommunicator final : public Communicator {
 public:
  explicit LateCommunicator(Communicator& real) : real_(real) {}
  int rank() const override { return real_.rank(); }
  int size() const override { return real_.size(); }
  at::Device device() const override { return real_.device(); }
  std::unique_ptr<Work> all_reduce(const at::Tensor& tensor) override {
    return real_.all_reduce(tensor);
  }
  std::unique_ptr<Work> all_gather(const at::Tensor& mine, const at::Tensor& all) override {
    return real_.all_gather(mine, all);
  }
  std::unique_ptr<Work> broadcast(const at::Tensor& tensor, int root) override {
    return real_.broadcast(tensor, root);
  }
  std::unique_ptr<Work> barrier() override { return real_.barrier(); }
  std::unique_ptr<Work> all_to_all_v(const at::Tensor& send,
                                     std::span<const std::int64_t> send_rows,
                                     const at::Tensor& receive,
                                     std::span<const std::int64_t> receive_rows) override {
    spoil(receive);
    sleep_at_random();
    const at::Tensor aside = at::empty_like(receive);
    return std::make_unique<Late>(real_.all_to_all_v(send, send_rows, aside, receive_rows), aside,
                                  receive);
  }

 private:
  struct Late final : Work {
    Late(std::unique_ptr<Work> work, at::Tensor from, at::Tensor to)
        : work(std::move(work)), from(std::move(from)), to(std::move(to)) {}
    bool test() override {
      work->test();
      return false;
    }
    void wait() override {
      sleep_at_random();
      work->wait();
      const at::NoGradGuard no_grad;
      to.copy_(from);
    }
    std::unique_ptr<Work> work;
    at::Tensor from, to;
  };
  static void spoil(const at::Tensor& tensor) {
    if (tensor.is_floating_point()) {
      tensor.fill_(std::numeric_limits<double>::quiet_NaN());
    } else {
      tensor.fill_(0xA5);
    }
  }

  Communicator& real_;
};

struct Case {
  std::string name;
  std::int64_t candidates, selected;
  std::vector<std::int64_t> counts;  // samples of each rank
  bool everyone_to_one = false;
};

std::vector<Case> cases() {
  const int size = world().size();
  const std::vector<std::int64_t> two(size, 2);
  std::vector<std::int64_t> uneven, one(size, 0);
  for (int rank = 0; rank < size; ++rank) uneven.push_back(rank % 3);
  one.back() = 1;
  return {{"one of three", 3, 1, two},     {"two of three", 3, 2, uneven},
          {"all of three", 3, 3, two},     {"two of seven", 7, 2, uneven},
          {"one sample", 3, 2, one},       {"all samples to one candidate", 5, 1, two, true},
          {"one candidate", 1, 1, uneven}, {"all of two", 2, 2, one}};
}

constexpr std::int64_t kSteps = 3, kTokens = 4, kWidth = 8, kElements = kTokens * kWidth;

/// A layer's routing and token blocks of all samples, the same on every rank.
struct GroupBatch {
  GroupBatch(const Case& of, int seed) : counts(of.counts) {
    at::manual_seed(1000 + seed);
    for (const auto count : counts) offsets.push_back(offsets.back() + count);
    const std::int64_t total = offsets.back(), n = of.candidates;
    const at::Tensor order = at::rand({kSteps, total, n}).argsort(-1, false).argsort(-1, false);
    routing.layer = seed % 3;
    routing.mask = order.lt(of.selected).to(at::kByte);
    if (of.everyone_to_one) routing.mask.zero_().select(2, n - 1).fill_(1);
    routing.probability = at::rand({kSteps, total, n}, at::kDouble);
    spikes = at::rand({kSteps, total, kElements}).lt(0.4).to(at::kDouble);
    dense = at::randn({kSteps, total, kElements}, at::kDouble);
  }
  at::Tensor mine(const at::Tensor& all) const {  // [T, total, x] -> [T*b, x], on the device
    const int r = world().rank();
    return all.narrow(1, offsets[r], counts[r])
        .reshape({kSteps * counts[r], all.size(2)})
        .contiguous()
        .to(world().device().torch());
  }
  std::vector<std::int64_t> counts, offsets{0};
  LayerRouting routing;
  at::Tensor spikes, dense;  // [T, total, elements]
};

at::Tensor rows_of(const at::Tensor& all, const std::vector<std::int64_t>& rows) {
  return all.flatten(0, 1).index_select(0, at::tensor(rows, at::kLong));
}

/// Returns the positions, among the token blocks of all ranks, of the blocks that this rank sent.
std::vector<std::int64_t> sent_of_all(const LayerPlan& plan, const GroupBatch& all) {
  const int r = world().rank();
  std::vector<std::int64_t> numbers;
  for (const auto block : plan.sent) {
    numbers.push_back(block / all.counts[r] * plan.samples + all.offsets[r] +
                      block % all.counts[r]);
  }
  return numbers;
}

at::Tensor selected(const at::Tensor& blocks, const std::vector<std::int64_t>& rows) {
  return blocks.index_select(0, at::tensor(rows, at::kLong).to(blocks.device()));
}

void expect_transfers(Communicator& group, const GroupBatch& all, at::ScalarType dtype) {
  const Placement placement(all.routing.mask.size(2), world().size());
  const auto plan = dist::plan_layer(placement, world().rank(), all.routing, all.offsets);
  Exchange exchange(group);
  const auto options = all.mine(all.dense).options().dtype(dtype);
  const at::Tensor here = at::empty({std::ssize(plan.received), kElements}, options);
  const at::Tensor away = at::empty_like(here);
  const at::Tensor back = at::empty({std::ssize(plan.sent), kElements}, options);
  const auto sent = [&](const at::Tensor& blocks) {
    return selected(all.mine(blocks), plan.sent).to(dtype);
  };

  exchange.send(Transfer::dispatch, plan, sent(all.spikes), here).wait();
  EXPECT_TRUE(at::equal(here.cpu(), rows_of(all.spikes, plan.received).to(dtype)));

  sleep_at_random();
  auto out = exchange.send(Transfer::combine_backward, plan, sent(all.dense), away);
  out.poll();
  out.wait();
  EXPECT_TRUE(at::equal(away.cpu(), rows_of(all.dense, plan.received).to(dtype)));

  // Combine, step by step: what a rank returns for a token block depends on the block and the rank.
  auto sums = exchange.begin(Transfer::combine, plan, back);
  std::int64_t row = 0;
  for (std::int64_t t = 0; t < kSteps; ++t) {
    const auto& rows = plan.receive_rows[t];
    const std::int64_t end = std::accumulate(rows.begin(), rows.end(), row);
    sleep_at_random();
    sums.send(t, here.slice(0, row, end) * 3 + world().rank());
    row = end;
  }
  for (std::int64_t t = 0; t < kSteps; ++t) sums.wait(t);
  at::Tensor expected = rows_of(all.spikes, sent_of_all(plan, all)) * 3;
  row = 0;
  for (const auto& step : plan.send_rows) {
    for (std::int64_t peer = 0; peer < std::ssize(step); ++peer) {
      expected.narrow(0, row, step[peer]) += double(peer);
      row += step[peer];
    }
  }
  EXPECT_TRUE(at::equal(back.cpu(), expected.to(dtype)));

  const at::Tensor numbers =
      at::tensor(plan.received, at::kLong).to(options.dtype(at::kDouble)).unsqueeze(1);
  const at::Tensor numbers_back = at::empty({back.size(0), 1}, numbers.options());
  exchange.send(Transfer::dispatch_backward, plan, numbers, numbers_back, dist::Rows::scalars)
      .wait();
  EXPECT_TRUE(at::equal(numbers_back.cpu().flatten(),
                        at::tensor(sent_of_all(plan, all), at::kLong).to(at::kDouble)));
}

TEST(RanksBruteForce, EveryTransferMatchesPlainIndexing) {
  world().form_groups(world().size(), 1);
  int seed = 0;
  for (const Case& of : cases()) {
    for (const auto dtype : {at::kDouble, at::kBFloat16, at::kByte}) {
      SCOPED_TRACE(of.name);
      const GroupBatch all(of, seed++);
      expect_transfers(world().exchange(), all, dtype);
      LateCommunicator late(world().exchange());
      expect_transfers(late, all, dtype);
    }
  }
}

/// The output, and the gradients of z, the gates and the held candidates' parameters.
using Tensors = std::vector<at::Tensor>;

Tensors forward_and_backward(
    const at::Tensor& z, const at::Tensor& gate, const Tensors& parameters, const at::Tensor& grad,
    const std::function<at::Tensor(const at::Tensor& z, const at::Tensor& gate)>& layer) {
  const at::Tensor z_leaf = z.detach().clone().requires_grad_();
  const at::Tensor gate_leaf = gate.detach().clone().requires_grad_();
  for (const auto& parameter : parameters) parameter.mutable_grad() = at::Tensor();
  const at::Tensor sum = layer(z_leaf, gate_leaf);
  sum.backward(grad);
  Tensors all{sum.detach(), z_leaf.grad(), gate_leaf.grad()};
  for (const auto& parameter : parameters) all.push_back(parameter.grad().clone());
  return all;
}

/// Compares a layer whose candidates are sharded over ranks with all candidates on one rank, for
/// the samples of all ranks. Sums over samples and ranks are formed in other orders: float64 to
/// 1e-12. With `bfloat16` products are rounded alike on both sides, but sums and gradients that are
/// sent are rounded once more.
void expect_layer(Communicator& group, const GroupBatch& all, std::int64_t selected,
                  bool bfloat16) {
  model::ModelConfig config;
  config.image_size = 8, config.patch = 4, config.width = kWidth, config.heads = 1;
  config.depth = 3, config.spiking_steps = kSteps, config.hidden_ratio = 2;
  config.candidates = all.routing.mask.size(2), config.selected = selected;
  const at::Device device = world().device().torch();
  const model::Parameters parameters(model::parameter_specs(config), at::kDouble, true, device);
  model::initialise(parameters, config, 3);
  const Placement placement(config.candidates, world().size());
  const std::int64_t layer = all.routing.layer, total = all.offsets.back(), r = world().rank();
  const model::Parameters here(model::parameter_specs(config, placement, r), at::kDouble, true,
                               device);
  model::initialise(here, config, 3);
  const model::Candidates one(parameters, config, layer, {true, bfloat16});
  const model::Candidates held(here, config, layer, {true, bfloat16});
  const auto of_held = [&](const model::Parameters& all_of_them) {
    Tensors chosen;
    for (const char* part :
         {"up.weight", "up.bias", "norm.weight", "norm.bias", "down.weight", "down.bias"}) {
      for (const auto j : placement.held(r, layer)) {
        chosen.push_back(all_of_them[fmt::format("blocks.{}.candidates.{}.{}", layer, j, part)]);
      }
    }
    return chosen;
  };

  const auto on_device = [&](const at::Tensor& t) { return t.to(device); };
  const auto shaped = [&](const at::Tensor& blocks) {
    return blocks.view({kSteps, -1, kTokens, kWidth});
  };
  Tensors expected = forward_and_backward(
      on_device(all.spikes), on_device(all.routing.probability), of_held(parameters),
      shaped(on_device(all.dense).contiguous()), [&](const at::Tensor& z, const at::Tensor& gate) {
        const LayerRouting routing{layer, gate, all.routing.mask};
        return shaped(one.forward(model::Spikes::of(z.reshape({-1, kWidth})), routing, {}));
      });
  const auto plan = dist::plan_layer(placement, r, all.routing, all.offsets);
  Exchange exchange(group);
  const auto mine = [&](const at::Tensor& t) {
    return on_device(t.narrow(1, all.offsets[r], all.counts[r]).contiguous());
  };
  const Tensors actual = forward_and_backward(
      mine(all.spikes), mine(all.routing.probability), of_held(here), shaped(mine(all.dense)),
      [&](const at::Tensor& z, const at::Tensor& gate) {
        const LayerRouting routing{layer, gate, {}, &plan};
        const auto spikes = model::Spikes::of(z.reshape({-1, kWidth}));
        return shaped(model::forward_on_ranks(held, spikes, routing, exchange));
      });

  const std::int64_t element = bfloat16 ? 2 : 8;
  EXPECT_EQ(exchange.traffic()[1].bytes, std::ssize(plan.received) * kElements * element);
  EXPECT_EQ(exchange.traffic()[2].bytes, std::ssize(plan.sent) * kElements * element);

  expected[0] = expected[0].flatten(2);
  for (int i : {0, 1, 2}) expected[i] = expected[i].narrow(1, all.offsets[r], all.counts[r]);
  for (std::size_t i = 0; i < expected.size(); ++i) {
    at::Tensor sum = actual[i].cpu();
    if (i >= 3 && placement.ranks() > 1) {  // of a parameter: sum over its replica group
      const at::Tensor there = actual[i].contiguous();
      world().replica_group().all_reduce(there)->wait();
      sum = there.cpu();
    }
    const at::Tensor reference = expected[i].cpu();
    const double largest = reference.numel() ? reference.abs().max().item<double>() : 0;
    const double tolerance = bfloat16 ? std::exp2(-6) * largest : 1e-12;
    EXPECT_TRUE(at::allclose(sum.view(reference.sizes()), reference, 1e-12, tolerance))
        << "tensor " << i << " of " << total << " samples";
  }
}

TEST(RanksBruteForce, AShardedLayerMatchesTheLayerOnOneRank) {
  int seed = 100;
  for (const Case& of : cases()) {
    SCOPED_TRACE(of.name);
    const GroupBatch all(of, seed++);
    const Placement placement(of.candidates, world().size());
    world().form_groups(world().size(), placement.shards());
    for (const bool bfloat16 : {false, true}) {
      expect_layer(world().exchange(), all, of.selected, bfloat16);
    }
    LateCommunicator late(world().exchange());
    expect_layer(late, all, of.selected, false);
  }
}

}  // namespace
}  // namespace laterna::tests
