// The gradient reducer between ranks. Rank r's gradient is 2^r times a gradient that all ranks
// know, so that a sum shows exactly which ranks contributed: 2^size - 1 when all did.
#include "dist/gradient_reducer.h"

#include <gtest/gtest.h>

#include <chrono>
#include <numeric>
#include <random>
#include <thread>

#include "dist/replica_check.h"
#include "tests/ranks/ranks.h"

namespace laterna::tests {
namespace {

using dist::GradientReducer;

constexpr std::int64_t kBucketBytes = 256;

struct Flat {
  explicit Flat(const std::vector<std::int64_t>& sizes, at::ScalarType type = at::kDouble) {
    const auto options = at::TensorOptions().dtype(type).device(world().device().torch());
    gradient = at::zeros({std::accumulate(sizes.begin(), sizes.end(), std::int64_t{0})}, options);
    std::int64_t offset = 0;
    for (const std::int64_t size : sizes) {
      parameters.push_back(at::ones({size}, options).requires_grad_());
      parameters.back().mutable_grad() = gradient.slice(0, offset, offset + size);
      offset += size;
    }
  }
  std::vector<at::Tensor> parameters;
  at::Tensor gradient;
};

const std::vector<std::int64_t> kSizes = {5, 64, 1, 33, 200, 7, 7, 90};

// Runs a backward pass that adds `scale` to every gradient element of the parameters in `order`;
// the chain of additions makes backward reach the parameters in reverse.
void backward_through(const Flat& flat, const std::vector<std::size_t>& order, double scale) {
  at::Tensor sum = at::zeros({}, flat.gradient.options());
  for (const std::size_t i : order) sum = (sum + flat.parameters[i].sum()) * 1.0;
  (sum * scale).backward();
}

std::vector<std::size_t> in_order(const Flat& flat) {
  std::vector<std::size_t> order(flat.parameters.size());
  std::iota(order.begin(), order.end(), std::size_t{0});
  return order;
}

double all_ranks() { return std::exp2(world().size()) - 1; }
double mine() { return std::exp2(world().rank()); }

TEST(RanksReducer, SumsTheGradientsOfAllRanks) {
  Flat flat(kSizes);
  GradientReducer reducer(world().reduction(), flat.parameters, flat.gradient, kBucketBytes);
  for (int step = 0; step < 5; ++step) {
    flat.gradient.zero_();
    reducer.arm();
    backward_through(flat, in_order(flat), mine());
    reducer.finish();
    EXPECT_TRUE(at::equal(flat.gradient, at::full_like(flat.gradient, all_ranks()))) << step;
    EXPECT_EQ(reducer.report().bytes, world().size() == 1 ? 0 : 407 * 8);
    EXPECT_EQ(reducer.report().buckets_in_backward, reducer.report().buckets);
  }
}

// A candidate's gradient is summed over its replica group: the ranks of every group that hold its
// shard.
TEST(RanksReducer, AReplicaGroupSumsItsShard) {
  for (int expert = 1; expert <= world().size(); ++expert) {
    if (world().size() % expert != 0) continue;
    const int shards = std::min(expert, 3);
    world().form_groups(expert, shards);
    double expected = 0;
    for (int rank = 0; rank < world().size(); ++rank) {
      const bool mine = rank % expert % shards == world().rank() % expert % shards;
      if (mine) expected += std::exp2(rank);
    }
    Flat flat(kSizes);
    GradientReducer reducer(world().replica_group(), flat.parameters, flat.gradient, kBucketBytes);
    reducer.arm();
    backward_through(flat, in_order(flat), mine());
    reducer.finish();
    EXPECT_TRUE(at::equal(flat.gradient, at::full_like(flat.gradient, expected))) << expert;
  }
}

TEST(RanksReducer, MicroBatchesAccumulateAndTheirNumberMayDiffer) {
  Flat flat(kSizes);
  GradientReducer reducer(world().reduction(), flat.parameters, flat.gradient, kBucketBytes);
  const int micro_batches = 1 + world().rank() % 3;
  for (int i = 0; i + 1 < micro_batches; ++i) backward_through(flat, in_order(flat), mine());
  reducer.arm();
  backward_through(flat, in_order(flat), mine());
  reducer.finish();
  double expected = 0;
  for (int rank = 0; rank < world().size(); ++rank) expected += (1 + rank % 3) * std::exp2(rank);
  EXPECT_TRUE(at::equal(flat.gradient, at::full_like(flat.gradient, expected)));
}

TEST(RanksReducer, ARankWithoutASampleContributesZeros) {
  for (int idle = 0; idle < world().size(); ++idle) {
    Flat flat(kSizes);
    GradientReducer reducer(world().reduction(), flat.parameters, flat.gradient, kBucketBytes);
    reducer.arm();
    if (world().rank() != idle) backward_through(flat, in_order(flat), mine());
    reducer.finish();
    const double expected = all_ranks() - std::exp2(idle);
    EXPECT_TRUE(at::equal(flat.gradient, at::full_like(flat.gradient, expected))) << idle;
  }
}

// Each rank's graph uses the parameters in a different order and leaves some out; ranks sleep at
// random between forward and backward.
TEST(RanksReducer, GraphsMayDifferInOrderAndContent) {
  for (int round = 0; round < 10; ++round) {
    Flat flat(kSizes);
    GradientReducer reducer(world().reduction(), flat.parameters, flat.gradient, kBucketBytes);
    const auto used_by = [&](int rank) {
      std::mt19937 engine(1000 * round + rank);
      std::vector<std::size_t> order = in_order(flat);
      std::shuffle(order.begin(), order.end(), engine);
      order.resize(1 + engine() % order.size());
      return order;
    };
    reducer.arm();
    std::mt19937 own(world().rank() + 31 * round);
    std::this_thread::sleep_for(std::chrono::microseconds(own() % 4000));
    backward_through(flat, used_by(world().rank()), mine());
    reducer.finish();
    std::vector<double> expected(flat.parameters.size(), 0);
    for (int rank = 0; rank < world().size(); ++rank) {
      for (const std::size_t i : used_by(rank)) expected[i] += std::exp2(rank);
    }
    for (std::size_t i = 0; i < expected.size(); ++i) {
      const at::Tensor& gradient = flat.parameters[i].grad();
      EXPECT_TRUE(at::equal(gradient, at::full_like(gradient, expected[i]))) << round << " " << i;
    }
  }
}

// Float sums of mixed magnitude are equal on all ranks and from run to run, whichever rank is late;
// over MPI also for any bucket size (NCCL's order depends on an element's position in its bucket).
TEST(RanksReducer, SumsHaveTheSameBitsOnAllRanksAndInAllRuns) {
  std::vector<at::Tensor> results;
  for (const std::int64_t bucket_bytes : {64, 1024, 1 << 20}) {
    for (int run = 0; run < 3; ++run) {
      Flat flat({1000, 3, 5000, 77}, at::kFloat);
      GradientReducer reducer(world().reduction(), flat.parameters, flat.gradient, bucket_bytes);
      std::mt19937 values(world().rank());
      std::normal_distribution<float> normal;
      const at::Tensor start = at::empty(flat.gradient.sizes(), at::kFloat);
      for (std::int64_t i = 0; i < start.numel(); ++i) {
        const float magnitude = std::pow(10.0F, static_cast<float>(values() % 9));
        start.mutable_data_ptr<float>()[i] = magnitude * normal(values);
      }
      flat.gradient.copy_(start);
      std::mt19937 own(run * 100 + world().rank());
      std::this_thread::sleep_for(std::chrono::microseconds(own() % 5000));
      reducer.arm();
      backward_through(flat, in_order(flat), mine());
      reducer.finish();
      results.push_back(flat.gradient);
      const auto& same = results[flat.gradient.is_cpu() ? 0 : results.size() - 1 - run];
      EXPECT_TRUE(at::equal(flat.gradient, same)) << bucket_bytes << " " << run;
    }
  }
  const std::vector<std::string> names(results.size(), "gradient");
  EXPECT_FALSE(dist::find_divergence(world().control(), names, results));
}

// A transfer on another communicator, begun during backward, does not disturb the buckets.
TEST(RanksReducer, WorksWhileATransferIsPending) {
  Flat flat(kSizes);
  GradientReducer reducer(world().reduction(), flat.parameters, flat.gradient, kBucketBytes);
  const std::vector<std::int64_t> one_row(world().size(), 1);
  const at::Tensor rows = at::full({world().size(), 50000}, mine(), at::kDouble);
  const at::Tensor received = at::zeros_like(rows);
  reducer.arm();
  backward_through(flat, {5, 6, 7}, mine());
  auto exchange = world().control().all_to_all_v(rows, one_row, received, one_row);
  backward_through(flat, {0, 1, 2, 3, 4}, mine());
  reducer.finish();
  exchange->wait();
  for (int rank = 0; rank < world().size(); ++rank) {
    EXPECT_TRUE(at::equal(received[rank], at::full_like(received[rank], std::exp2(rank))));
  }
  EXPECT_TRUE(at::equal(flat.gradient, at::full_like(flat.gradient, all_ranks())));
}

}  // namespace
}  // namespace laterna::tests
