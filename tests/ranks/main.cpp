// Runs every test on all ranks at once (mpirun -n R tests_ranks). Rank 0 prints as GoogleTest does;
// the others print only their failures. If one rank fails, all end with status 1.
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <cstdio>

#include "tests/ranks/ranks.h"

namespace laterna::tests {
namespace {

dist::World* the_world = nullptr;

// Prints failures with their rank. A fatal failure leaves a test before collectives that the other
// ranks wait in, so it ends all ranks.
class RankPrinter final : public testing::EmptyTestEventListener {
  // GoogleTest holds its lock in OnTestPartResult, so the current test cannot be queried there.
  void OnTestStart(const testing::TestInfo& test) override {
    test_ = fmt::format("{}.{}", test.test_suite_name(), test.name());
  }
  void OnTestPartResult(const testing::TestPartResult& result) override {
    if (!result.failed()) return;
    fmt::print(stderr, "rank {}: {}: {}:{}: {}\n", world().rank(), test_,
               result.file_name() ? result.file_name() : "", result.line_number(),
               result.message());
    if (result.fatally_failed()) world().abort(1);
  }

  std::string test_;
};

int run_tests() {
  testing::TestEventListeners& listeners = testing::UnitTest::GetInstance()->listeners();
  if (world().rank() != 0) delete listeners.Release(listeners.default_result_printer());
  listeners.Append(new RankPrinter);

  const at::Tensor failures = at::full({1}, RUN_ALL_TESTS(), at::kLong);
  world().control().all_reduce(failures)->wait();
  const bool failed = failures.item<std::int64_t>() != 0;
  if (failed && world().rank() == 0) fmt::print("A rank failed: see above.\n");
  return failed ? 1 : 0;
}

}  // namespace

dist::World& world() { return *the_world; }

}  // namespace laterna::tests

int main(int argc, char** argv) {
  testing::InitGoogleTest(&argc, argv);
  laterna::dist::World world;
  laterna::tests::the_world = &world;
  world.open_device();
  world.form_groups(1, 1);
  const int status = laterna::tests::run_tests();
  world.finalize();
  return status;
}
