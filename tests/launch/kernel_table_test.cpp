// Compares every kernel of the table with its reference, in float and double, on every instruction
// set of the processor; a set that the processor lacks is skipped.
#include "launch/bench/kernel_table.h"

#include "model/kernels/cpu/instruction_sets.h"
#include "tests/model/tensors.h"

namespace laterna::launch {
namespace {

/// Returns a trial whose results can be compared.
KernelTrial decided_trial(const Kernel& kernel, const KernelShape& shape, at::ScalarType dtype) {
  KernelTrial trial = kernel.trial(shape, dtype);
  while (trial.undecided && trial.undecided()) trial = kernel.trial(shape, dtype);
  return trial;
}

void compare(const KernelTrial& trial) {
  const auto results = trial.kernel();
  const auto expected = trial.reference();
  ASSERT_EQ(results.size(), expected.size());
  for (std::size_t i = 0; i < results.size(); ++i) {
    const at::Tensor actual = results[i].values();
    const std::string what = fmt::format("result {}", i);
    ASSERT_EQ(actual.numel(), expected[i].numel()) << what;
    const at::Tensor wanted = expected[i].view(actual.sizes());
    if (trial.tolerance > 0) {
      model::expect_close(actual, wanted, trial.tolerance, what);
    } else {
      EXPECT_TRUE(at::equal(actual, wanted)) << what;
    }
  }
}

class KernelTable : public testing::TestWithParam<std::string> {
 protected:
  void TearDown() override { kernels::use_instruction_set(usual_); }
  const std::string usual_ = kernels::kernels<float>().instruction_set;
};

TEST_P(KernelTable, MatchesItsReferences) {
  if (!kernels::use_instruction_set(GetParam())) {
    GTEST_SKIP() << "this processor has no " << GetParam();
  }
  EXPECT_EQ(kernels::kernels<double>().instruction_set, GetParam());
  for (const auto& kernel : kernel_table()) {
    std::uint64_t seed = 0;
    for (const auto& shape : kernel.test_shapes) {
      for (const auto dtype : {at::kFloat, at::kDouble}) {
        SCOPED_TRACE(fmt::format("{} on {}, {}: {}", kernel.name, GetParam(), c10::toString(dtype),
                                 shape.describe()));
        at::manual_seed(seed++);
        compare(decided_trial(kernel, shape, dtype));
      }
    }
  }
}

INSTANTIATE_TEST_SUITE_P(On, KernelTable, testing::ValuesIn(kernels::instruction_sets()),
                         [](const auto& info) { return info.param; });

}  // namespace
}  // namespace laterna::launch
