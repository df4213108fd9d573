// The gradient reducer in one process: with one rank it leaves gradients unchanged; with a
// communicator that records what is sent, buckets are sent in a fixed order and hooks poll.
#include "dist/gradient_reducer.h"

#include <gtest/gtest.h>

#include <stdexcept>

#include "dist/comm/local_communicator.h"

namespace laterna::dist {
namespace {

// Parameters of the given sizes whose gradients are views of one buffer.
struct Flat {
  explicit Flat(const std::vector<std::int64_t>& sizes, at::ScalarType type = at::kDouble) {
    std::int64_t total = 0;
    for (const std::int64_t size : sizes) total += size;
    gradient = at::zeros({total}, type);
    std::int64_t offset = 0;
    for (const std::int64_t size : sizes) {
      parameters.push_back(at::ones({size}, type).requires_grad_());
      parameters.back().mutable_grad() = gradient.slice(0, offset, offset + size);
      offset += size;
    }
  }
  std::vector<at::Tensor> parameters;
  at::Tensor gradient;
};

// Rank 0 of two; the peer holds the same gradients. A sum is formed only when it is waited for.
class RecordingCommunicator final : public Communicator {
 public:
  struct Recorded final : Work {
    Recorded(at::Tensor sum, int& polls) : tensor(std::move(sum)), polls(polls) {}
    bool test() override { return ++polls, false; }
    void wait() override { tensor.mul_(2); }
    at::Tensor tensor;
    int& polls;
  };

  int rank() const override { return 0; }
  int size() const override { return 2; }
  at::Device device() const override { return at::kCPU; }
  std::unique_ptr<Work> all_reduce(const at::Tensor& tensor) override {
    launched.push_back({tensor.storage_offset(), tensor.numel()});
    return std::make_unique<Recorded>(tensor, polls);
  }
  std::unique_ptr<Work> all_gather(const at::Tensor&, const at::Tensor&) override { return {}; }
  std::unique_ptr<Work> all_to_all_v(const at::Tensor&, std::span<const std::int64_t>,
                                     const at::Tensor&, std::span<const std::int64_t>) override {
    return {};
  }
  std::unique_ptr<Work> broadcast(const at::Tensor&, int) override { return {}; }
  std::unique_ptr<Work> barrier() override { return {}; }

  using Slice = std::pair<std::int64_t, std::int64_t>;  // offset, count
  std::vector<Slice> launched;
  int polls = 0;
};

// Multiplies the sums of parameters in the given order; backward reaches the parameters in reverse.
at::Tensor chain(const Flat& flat, const std::vector<std::size_t>& order) {
  at::Tensor x = at::ones({1}, flat.gradient.options());
  for (const std::size_t i : order) x = x * flat.parameters[i].sum();
  return x;
}

TEST(GradientReducer, LeavesGradientsOfOneRankUnchanged) {
  LocalCommunicator local;
  Flat flat({3, 2}, at::kFloat);
  GradientReducer reducer(local, flat.parameters, flat.gradient);
  reducer.arm();
  chain(flat, {0, 1}).backward();
  reducer.finish();
  EXPECT_TRUE(at::equal(flat.gradient, at::tensor({2.f, 2.f, 2.f, 3.f, 3.f})));
  EXPECT_EQ(reducer.report().buckets, 0);
  EXPECT_EQ(reducer.report().bytes, 0);
}

TEST(GradientReducer, SendsBucketsFromTheEndDuringBackward) {
  RecordingCommunicator two;
  Flat flat({4, 1, 1, 4});
  GradientReducer reducer(two, flat.parameters, flat.gradient, 2 * sizeof(double));
  reducer.arm();
  chain(flat, {0, 1, 2, 3}).backward();
  const std::vector<RecordingCommunicator::Slice> expected = {{6, 4}, {4, 2}, {0, 4}};
  EXPECT_EQ(two.launched, expected);
  EXPECT_GT(two.polls, 0);
  const at::Tensor mine = flat.gradient.clone();
  reducer.finish();
  EXPECT_TRUE(at::equal(flat.gradient, 2 * mine));
  EXPECT_EQ(reducer.report().buckets, 3);
  EXPECT_EQ(reducer.report().buckets_in_backward, 3);
  EXPECT_EQ(reducer.report().bytes, 10 * 8);
  EXPECT_GE(reducer.report().exposed_seconds, 0);
}

TEST(GradientReducer, SendsInOneOrderWhateverOrderHooksFireIn) {
  for (const std::vector<std::size_t>& order :
       {std::vector<std::size_t>{0, 1, 2, 3}, {3, 2, 1, 0}, {2, 0, 3, 1}, {1}, {}}) {
    RecordingCommunicator two;
    Flat flat({3, 3, 3, 3});
    GradientReducer reducer(two, flat.parameters, flat.gradient, 1);
    reducer.arm();
    if (!order.empty()) chain(flat, order).backward();
    reducer.finish();
    const std::vector<RecordingCommunicator::Slice> expected = {{9, 3}, {6, 3}, {3, 3}, {0, 3}};
    EXPECT_EQ(two.launched, expected);
  }
}

TEST(GradientReducer, SendsASharedParameterOnceWithItsWholeGradient) {
  RecordingCommunicator two;
  Flat flat({2});
  GradientReducer reducer(two, flat.parameters, flat.gradient);
  reducer.arm();
  chain(flat, {0, 0, 0}).backward();  // 3 sum^2 = 12 per element
  EXPECT_EQ(two.launched.size(), 1);
  reducer.finish();
  EXPECT_TRUE(at::equal(flat.gradient, at::full({2}, 24.0, at::kDouble)));
}

TEST(GradientReducer, AccumulatesEarlierMicroBatchesWithoutSending) {
  RecordingCommunicator two;
  Flat flat({2, 2});
  GradientReducer reducer(two, flat.parameters, flat.gradient);
  for (int step = 0; step < 2; ++step) {
    flat.gradient.zero_();
    two.launched.clear();
    chain(flat, {0, 1}).backward();
    chain(flat, {0, 1}).backward();
    EXPECT_TRUE(two.launched.empty());
    reducer.arm();
    chain(flat, {0, 1}).backward();
    EXPECT_EQ(two.launched.size(), 1);
    reducer.finish();
    EXPECT_TRUE(at::equal(flat.gradient, at::full({4}, 12.0, at::kDouble)));  // 2 ranks x 3 x 2
  }
}

TEST(GradientReducer, DestructorRemovesTheHooks) {
  RecordingCommunicator two;
  Flat flat({2});
  GradientReducer(two, flat.parameters, flat.gradient).arm();
  chain(flat, {0}).backward();
  EXPECT_TRUE(two.launched.empty());
}

TEST(GradientReducer, SumsGapsBetweenParametersToo) {
  RecordingCommunicator two;
  const at::Tensor buffer = at::zeros({16}, at::kFloat);
  std::vector<at::Tensor> parameters;
  for (const std::int64_t offset : {1, 8}) {
    parameters.push_back(at::ones({3}).requires_grad_());
    parameters.back().mutable_grad() = buffer.slice(0, offset, offset + 3);
  }
  GradientReducer reducer(two, parameters, buffer, 1);
  reducer.arm();
  reducer.finish();
  const std::vector<RecordingCommunicator::Slice> expected = {{8, 8}, {0, 8}};
  EXPECT_EQ(two.launched, expected);
}

TEST(GradientReducer, RefusesGradientsOutsideTheFlatBuffer) {
  RecordingCommunicator two;
  Flat flat({2, 2});
  EXPECT_THROW(GradientReducer(two, {at::ones({2})}, flat.gradient), std::invalid_argument);
  EXPECT_THROW(GradientReducer(two, {at::ones({2}).requires_grad_()}, flat.gradient),
               std::invalid_argument);
  EXPECT_THROW(GradientReducer(two, {flat.parameters[1], flat.parameters[0]}, flat.gradient),
               std::invalid_argument);
  EXPECT_THROW(GradientReducer(two, flat.parameters, flat.gradient.to(at::kLong)),
               std::invalid_argument);
  EXPECT_THROW(GradientReducer(two, flat.parameters, flat.gradient, 0), std::invalid_argument);

  GradientReducer reducer(two, flat.parameters, flat.gradient);
  flat.parameters[1].mutable_grad() = at::Tensor();
  EXPECT_THROW(reducer.arm(), std::logic_error);
}

TEST(GradientReducer, RefusesCallsOutOfOrder) {
  for (const bool alone : {false, true}) {
    RecordingCommunicator two;
    LocalCommunicator one;
    Communicator& communicator = alone ? static_cast<Communicator&>(one) : two;
    Flat flat({2});
    GradientReducer reducer(communicator, flat.parameters, flat.gradient);
    EXPECT_THROW(reducer.finish(), std::logic_error);
    reducer.arm();
    EXPECT_THROW(reducer.arm(), std::logic_error);
    chain(flat, {0}).backward();
    if (!alone) {
      EXPECT_THROW(chain(flat, {0}).backward(), std::logic_error);
    }
    reducer.finish();
  }
}

}  // namespace
}  // namespace laterna::dist
