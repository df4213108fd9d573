// Trainings on ranks that do not go straight to their end: resumed from a checkpoint of any layout,
// interrupted in a step, with a weight or gradient that is not finite, and a failure of one rank.
#include "tests/launch/save.h"
#include "tests/ranks/training.h"

namespace laterna::tests {
namespace {

/// Returns rank 0's run folder to all ranks of this host.
std::string common(const data::ScratchFolder& folder) {
  const at::Tensor bytes = at::zeros({256}, at::kByte);
  const std::string path = folder.path().string();
  std::copy(path.begin(), path.end(), bytes.mutable_data_ptr<std::uint8_t>());
  world().control().broadcast(bytes, 0)->wait();
  return reinterpret_cast<const char*>(bytes.const_data_ptr<std::uint8_t>());
}

TEST(RanksTrainer, ResumesFromACheckpointOfAnyLayout) {
  for (const std::int64_t before : group_sizes()) {
    for (const std::int64_t after : group_sizes()) {
      SCOPED_TRACE(fmt::format("EP {} resumed with EP {}", before, after));
      const data::ScratchFolder folder;
      const std::string run = common(folder);
      Config config = tiny(7, 2, before == after ? "float32" : "float64");
      config.parallel.expert = before;
      const Outcome whole = on_ranks(config);
      Outcome parts;
      {
        Trainer trainer(config, *place().images, world());
        trainer.start(0);
        EXPECT_TRUE(train_until(trainer, parts, 4));
        const auto bytes = launch::save_checkpoint(run, config, place().images->sha256(),
                                                   trainer.state(), world());
        EXPECT_GT(bytes, 0);
      }
      config.parallel.expert = after;
      launch::form_groups(world(), config);
      Trainer trainer(config, *place().images, world());
      auto state = trainer.state();
      const auto manifest = launch::read_manifest(run, 4);
      EXPECT_EQ(manifest.files.size(), std::min<std::int64_t>(before, 3));
      launch::verify_checkpoint(run, manifest);
      launch::load_checkpoint(run, manifest, state);
      trainer.start(state.step);
      EXPECT_TRUE(train_until(trainer, parts, kSteps));
      if (before == after) {
        expect_same_bits(parts, whole);
      } else {
        for (std::size_t s = 0; s < kSteps; ++s) {
          EXPECT_NEAR(parts.losses[s] / whole.losses[s], 1, 1e-11) << "step " << s;
        }
      }
      world().control().barrier()->wait();  // before rank 0 deletes its folder
    }
  }
}

TEST(RanksTrainer, AnInterruptedStepChangesNothing) {
  launch::form_groups(world(), tiny(7, 1));
  Trainer trainer(tiny(7, 1, "float32"), *place().images, world());
  trainer.start(0);
  Outcome outcome;
  EXPECT_TRUE(train_until(trainer, outcome, 2));
  if (world().rank() == 0) launch::StopRequest::leave(place().folder.path(), 1);
  world().control().barrier()->wait();
  Outcome none;
  EXPECT_FALSE(train_until(trainer, none, 3));
  EXPECT_EQ(trainer.state().step, 2);
  EXPECT_EQ(trainer.state().optimizer.updates(), 2);
  expect_same_bits(by_name(trainer.parameters(), trainer.parameters().values()), outcome.weights);
  expect_same_bits(by_name(trainer.parameters(), trainer.state().optimizer.average()),
                   outcome.average);
  launch::StopRequest(place().folder.path(), 1, world().control()).clear();
  world().control().barrier()->wait();
}

// A weight of one rank is NaN for one step: no rank updates anything, and training continues as if
// that step had been left out.
TEST(RanksTrainer, ANonFiniteStepIsSkippedOnAllRanks) {
  launch::form_groups(world(), tiny(7, 0));
  Trainer trainer(tiny(7, 0), *place().images, world());
  trainer.start(0);
  Outcome outcome;
  EXPECT_TRUE(train_until(trainer, outcome, 2));
  const Tensors average = outcome.average;
  const at::Tensor bias = trainer.parameters()["head.bias"].detach();
  const at::Tensor kept = bias.clone();
  if (world().rank() == 0) bias.fill_(std::numeric_limits<double>::quiet_NaN());
  EXPECT_TRUE(train_until(trainer, outcome, 3));
  EXPECT_TRUE(outcome.records.back().skipped);
  EXPECT_EQ(outcome.records.back().step, 3);
  bias.copy_(kept);
  EXPECT_TRUE(train_until(trainer, outcome, 3));
  for (const auto& [name, tensor] : average)
    EXPECT_TRUE(tensor.equal(outcome.average[name])) << name;
  EXPECT_TRUE(train_until(trainer, outcome, 4));
  EXPECT_FALSE(outcome.records.back().skipped);
  EXPECT_TRUE(std::isfinite(outcome.losses.back()));
  EXPECT_EQ(trainer.state().optimizer.updates(), 3);
}

TEST(RanksTrainer, RepeatedNonFiniteStepsEndAllRanks) {
  launch::form_groups(world(), tiny(7, 0));
  Trainer trainer(tiny(7, 0, "float32"), *place().images, world());
  trainer.parameters()["head.bias"].detach().fill_(std::numeric_limits<float>::quiet_NaN());
  trainer.start(0);
  launch::StopRequest stop(place().folder.path(), 1, world().control());
  for (std::int64_t step = 1; step < launch::kMostSkipped; ++step) {
    const auto record = trainer.train_step(stop);
    ASSERT_TRUE(record && record->skipped);
  }
  data::expect_error<launch::CollectiveError>(
      [&] { trainer.train_step(stop); },
      {"steps 1 to 5", "not finite", "the weights head.bias", "learning_rate"});
}

TEST(RanksTogether, AFailureOfOneRankFailsAllRanks) {
  EXPECT_NO_THROW(launch::run_collectively(world(), [] {}));
  for (int failing = 0; failing < world().size(); ++failing) {
    const auto work = [&] {
      if (world().rank() == failing) throw launch::UsageError("model.width is odd");
    };
    try {
      launch::run_collectively(world(), work);
      ADD_FAILURE() << "nothing was thrown";
    } catch (const launch::CollectiveError& error) {
      EXPECT_EQ(error.status, 2);
      EXPECT_NE(std::string(error.what()).find("model.width is odd"), std::string::npos);
    }
  }
}

}  // namespace
}  // namespace laterna::tests
