// Every collective against the result that each rank computes by itself: the ranks draw from the
// same seeds, so each rank knows what the others sent. On a host with GPUs the collectives are
// NCCL's.
#include <gtest/gtest.h>

#include <array>
#include <chrono>
#include <cstring>
#include <random>
#include <thread>

#include "dist/comm/mpi_communicator.h"
#include "dist/replica_check.h"
#include "tests/ranks/ranks.h"

namespace laterna::tests {
namespace {

using dist::Communicator;
using dist::Work;
using Shape = std::vector<std::int64_t>;

constexpr std::array kTypes = {at::kFloat, at::kDouble,   at::kLong, at::kByte,
                               at::kBool,  at::kBFloat16, at::kInt};

at::Tensor random_tensor(at::IntArrayRef shape, at::ScalarType type, std::uint32_t seed) {
  std::mt19937 engine(seed);
  const at::Tensor values = at::empty(shape, at::kLong);
  for (std::int64_t i = 0; i < values.numel(); ++i) {
    values.mutable_data_ptr<std::int64_t>()[i] = static_cast<std::int64_t>(engine() % 200);
  }
  return type == at::kBool ? values.remainder(2).to(type) : values.to(type);
}

// Returns floats whose sum depends on the order in which they are added.
at::Tensor mixed_magnitudes(std::int64_t count, at::ScalarType type, std::uint32_t seed) {
  std::mt19937_64 engine(seed);
  std::normal_distribution<double> normal;
  const at::Tensor values = at::empty({count}, at::kDouble);
  for (std::int64_t i = 0; i < count; ++i) {
    const double magnitude = std::pow(10.0, static_cast<int>(engine() % 13) - 6);
    values.mutable_data_ptr<double>()[i] = magnitude * normal(engine);
  }
  return values.to(type);
}

bool same_bits(const at::Tensor& one, const at::Tensor& other) {
  const at::Tensor a = one.cpu(), b = other.cpu();
  return a.nbytes() == b.nbytes() &&
         (a.nbytes() == 0 || std::memcmp(a.const_data_ptr(), b.const_data_ptr(), a.nbytes()) == 0);
}

void sleep_at_random(std::mt19937& engine) {
  std::this_thread::sleep_for(std::chrono::microseconds(engine() % 3000));
}

// Returns the expected sum over ranks of make(rank), formed in rank order.
template <typename Make>
at::Tensor sum_in_rank_order(const Make& make) {
  at::Tensor sum = make(0).clone();
  for (int rank = 1; rank < world().size(); ++rank) sum.add_(make(rank));
  return sum;
}

void check_all_gather(Communicator& ranks, at::IntArrayRef shape, at::ScalarType type) {
  const at::Tensor mine = random_tensor(shape, type, 7 + ranks.rank()).to(ranks.device());
  Shape all_shape = {ranks.size()};
  all_shape.insert(all_shape.end(), shape.begin(), shape.end());
  const at::Tensor all = at::zeros(all_shape, mine.options());
  ranks.all_gather(mine, all)->wait();
  for (int rank = 0; rank < ranks.size(); ++rank) {
    EXPECT_TRUE(same_bits(all[rank], random_tensor(shape, type, 7 + rank))) << type << " " << rank;
  }
}

// Returns the rows that rank `from` sends to rank `to` in round `round`: often none.
at::Tensor block(int from, int to, int round, at::IntArrayRef row, at::ScalarType type) {
  const std::uint32_t seed = 1000 * round + 30 * from + to;
  std::mt19937 engine(seed);
  const std::int64_t rows = engine() % 3 == 0 ? 0 : engine() % 9;
  Shape shape = {rows};
  shape.insert(shape.end(), row.begin(), row.end());
  return random_tensor(shape, type, seed);
}

void check_all_to_all(Communicator& ranks, int round, at::IntArrayRef row, at::ScalarType type) {
  std::vector<at::Tensor> outgoing, incoming;
  std::vector<std::int64_t> send_rows, receive_rows;
  for (int peer = 0; peer < ranks.size(); ++peer) {
    outgoing.push_back(block(ranks.rank(), peer, round, row, type));
    incoming.push_back(block(peer, ranks.rank(), round, row, type));
    send_rows.push_back(outgoing.back().size(0));
    receive_rows.push_back(incoming.back().size(0));
  }
  const at::Tensor expected = at::cat(incoming).to(ranks.device());
  const at::Tensor received = at::zeros_like(expected);
  ranks.all_to_all_v(at::cat(outgoing).to(ranks.device()), send_rows, received, receive_rows)
      ->wait();
  EXPECT_TRUE(same_bits(received, expected)) << type << " round " << round;
}

void check_broadcast(Communicator& ranks, at::IntArrayRef shape, at::ScalarType type) {
  for (int root = 0; root < ranks.size(); ++root) {
    const at::Tensor tensor = random_tensor(shape, type, 50 + ranks.rank()).to(ranks.device());
    ranks.broadcast(tensor, root)->wait();
    EXPECT_TRUE(same_bits(tensor, random_tensor(shape, type, 50 + root))) << type << " " << root;
  }
}

TEST(RanksCommunicator, MovesEveryTypeAndShape) {
  Communicator& ranks = world().reduction();
  int round = 0;
  for (const at::ScalarType type : kTypes) {
    for (const Shape& shape : {Shape{}, {1}, {17, 3}, {0, 4}, {3, 1, 5}}) {
      check_all_gather(ranks, shape, type);
      check_broadcast(ranks, shape, type);
    }
    for (const Shape& row : {Shape{}, {1}, {17}, {2, 3}, {0}}) {
      check_all_to_all(ranks, round++, row, type);
    }
  }
}

TEST(RanksCommunicator, MovesEmptyTensors) {
  Communicator& ranks = world().reduction();
  const std::vector<std::int64_t> none(ranks.size(), 0);
  const auto nothing = [&](at::IntArrayRef shape) { return at::empty(shape, ranks.device()); };
  ranks.all_to_all_v(nothing({0, 8}), none, nothing({0, 8}), none)->wait();
  ranks.all_reduce(nothing({0}))->wait();
  ranks.all_gather(nothing({0}), nothing({ranks.size(), 0}))->wait();
  ranks.broadcast(nothing({0}), 0)->wait();
}

/// Checks that `sum` is the sum of make(rank) over ranks and has the same bits on all ranks: over
/// MPI those of a sum in rank order, over NCCL within rounding of the terms' size.
template <typename Make>
void check_sum(const at::Tensor& sum, const Make& make) {
  EXPECT_FALSE(
      dist::find_divergence(world().control(), std::array<std::string, 1>{"sum"}, std::array{sum}));
  const at::Tensor in_rank_order = sum_in_rank_order(make);
  if (sum.is_cpu()) {
    EXPECT_TRUE(same_bits(sum, in_rank_order));
  } else {
    const at::Tensor size = sum_in_rank_order([&](int rank) { return make(rank).abs(); });
    const double eps = sum.scalar_type() == at::kFloat ? 1e-6 : 1e-15;
    EXPECT_TRUE((sum.cpu() - in_rank_order)
                    .abs()
                    .le(world().size() * eps * size)
                    .all()
                    .template item<bool>());
  }
}

TEST(RanksCommunicator, SumsHaveTheSameBitsOnAllRanks) {
  Communicator& ranks = world().reduction();
  for (const at::ScalarType type : {at::kFloat, at::kDouble}) {
    for (const std::int64_t count : {0, 1, 2, 5, 9, 1023, 4099, 20011}) {
      const auto make = [&](int rank) { return mixed_magnitudes(count, type, 100 * rank + 3); };
      at::Tensor first;
      for (int repetition = 0; repetition < 3; ++repetition) {
        const at::Tensor tensor = make(ranks.rank()).to(ranks.device());
        ranks.all_reduce(tensor)->wait();
        check_sum(tensor, make);
        if (!first.defined()) first = tensor;
        EXPECT_TRUE(same_bits(tensor, first)) << type << " " << count;
      }
    }
  }
  const auto whole = [](int rank) { return random_tensor({11, 13}, at::kLong, rank); };
  const at::Tensor tensor = whole(ranks.rank()).to(ranks.device());
  ranks.all_reduce(tensor)->wait();
  EXPECT_TRUE(same_bits(tensor, sum_in_rank_order(whole)));  // integers: exact
}

// A slice of a larger buffer is summed in place and the elements around it are not touched.
TEST(RanksCommunicator, SumsAViewInPlace) {
  Communicator& ranks = world().reduction();
  const at::Tensor there = at::ones({100}, at::kDouble).to(ranks.device());
  ranks.all_reduce(there.slice(0, 10, 90))->wait();
  const at::Tensor buffer = there.cpu();
  EXPECT_TRUE(
      at::equal(buffer.slice(0, 10, 90), at::full({80}, double(ranks.size()), at::kDouble)));
  EXPECT_TRUE(at::equal(buffer.slice(0, 0, 10), at::ones({10}, at::kDouble)));
  EXPECT_TRUE(at::equal(buffer.slice(0, 90), at::ones({10}, at::kDouble)));
}

TEST(RanksCommunicator, SplitsLongMessages) {
  MPI_Comm handle = MPI_COMM_NULL;
  MPI_Comm_dup(MPI_COMM_WORLD, &handle);
  {
    dist::MpiCommunicator ranks(handle, nullptr,
                                24);  // bytes: pieces end inside rows and elements
    for (const at::ScalarType type : kTypes) {
      check_all_gather(ranks, {13, 3}, type);
      check_all_to_all(ranks, 500, {7}, type);
      check_broadcast(ranks, {50}, type);
    }
    const auto make = [](int rank) { return mixed_magnitudes(1000, at::kFloat, rank); };
    const at::Tensor tensor = make(ranks.rank());
    ranks.all_reduce(tensor)->wait();
    EXPECT_TRUE(same_bits(tensor, sum_in_rank_order(make)));
  }
  MPI_Comm_free(&handle);
}

// Many collectives are in progress on two communicators, ranks are late at random, and each rank
// waits in a different order and tests some in between: the results are the same.
TEST(RanksCommunicator, DelaysAndWaitingOrderChangeNoResult) {
  world().form_groups(1, 1);
  Communicator& reduction = world().reduction();
  Communicator& exchange = world().replica_group();
  std::mt19937 own(99 + world().rank());
  for (int round = 0; round < 8; ++round) {
    std::vector<at::Tensor> sums, gathered;
    std::vector<std::unique_ptr<Work>> works;
    const auto make = [&](int i) {
      return [=](int rank) {
        return mixed_magnitudes(1 + 997 * i % 4001, at::kFloat, 77 * round + 11 * i + rank);
      };
    };
    for (int i = 0; i < 10; ++i) {
      sums.push_back(make(i)(world().rank()).to(reduction.device()));
      gathered.push_back(at::zeros({world().size()}, at::kLong).to(reduction.device()));
      const at::Tensor mine =
          at::full({1}, 100 * i + world().rank(), at::kLong).to(reduction.device());
      works.push_back(reduction.all_reduce(sums.back()));
      works.push_back(exchange.all_gather(mine, gathered.back()));
      if (own() % 3 == 0) sleep_at_random(own);
      if (own() % 2 == 0) works[own() % works.size()]->test();
    }
    std::shuffle(works.begin(), works.end(), own);
    for (const auto& work : works) {
      work->wait();
    }
    for (int i = 0; i < 10; ++i) {
      check_sum(sums[i], make(i));
      for (int rank = 0; rank < world().size(); ++rank) {
        EXPECT_EQ(gathered[i][rank].item<std::int64_t>(), 100 * i + rank);
      }
    }
  }
}

TEST(RanksCommunicator, KeepsTensorsThatTheCallerReleased) {
  Communicator& ranks = world().reduction();
  const auto options = at::TensorOptions().dtype(at::kInt).device(ranks.device());
  const at::Tensor all = at::zeros({ranks.size(), 200000}, options);
  auto work = ranks.all_gather(at::full({200000}, ranks.rank() + 1, options), all);
  const at::Tensor noise = at::full({200000}, -1, options);  // would reuse the freed memory
  work->wait();
  for (int rank = 0; rank < ranks.size(); ++rank) {
    EXPECT_TRUE(at::equal(all[rank], at::full({200000}, rank + 1, options)));
  }
}

TEST(RanksCommunicator, BarrierWaitsForTheLast) {
  Communicator& ranks = world().control();
  if (world().local_size() < world().size()) GTEST_SKIP() << "the hosts' clocks cannot be compared";
  const auto now = [] { return std::chrono::steady_clock::now().time_since_epoch().count(); };
  for (int late = 0; late < ranks.size(); ++late) {
    if (ranks.rank() == late) std::this_thread::sleep_for(std::chrono::milliseconds(20));
    const at::Tensor entered = at::full({1}, now(), at::kLong);
    ranks.barrier()->wait();
    const std::int64_t left = now();
    const at::Tensor all = at::zeros({ranks.size()}, at::kLong);
    ranks.all_gather(entered, all)->wait();
    EXPECT_GE(left, all.max().item<std::int64_t>());
  }
}

TEST(RanksCommunicator, RefusesInvalidArgumentsBeforeSending) {
  Communicator& ranks = world().reduction();
  const at::Tensor rows = at::zeros({2, 2}, ranks.device());
  EXPECT_THROW(ranks.all_reduce(rows.to(at::kByte)), std::invalid_argument);
  EXPECT_THROW(ranks.broadcast(rows, ranks.size()), std::invalid_argument);
  EXPECT_THROW(ranks.broadcast(at::empty({2}, at::kMeta), 0), std::invalid_argument);
  if (!ranks.device().is_cpu()) {
    EXPECT_THROW(ranks.broadcast(at::empty({2}), 0), std::invalid_argument);
  }
  std::vector<std::int64_t> to_me(ranks.size(), 0), to_none(ranks.size(), 0);
  to_me[ranks.rank()] = 2;
  EXPECT_THROW(ranks.all_to_all_v(rows, to_me, at::zeros({0, 2}, ranks.device()), to_none),
               std::invalid_argument);
  ranks.barrier()->wait();  // the communicator still works
}

}  // namespace
}  // namespace laterna::tests
