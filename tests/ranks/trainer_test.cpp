// Training on ranks against a plain loop over whole batches, written here without communication,
// micro-batches or shares; ranks without a sample included (batch 7 on 9 ranks).
#include "launch/trainer.h"

#include <gtest/gtest.h>

#include "data/glyphs.h"
#include "dist/replica_check.h"
#include "launch/together.h"
#include "tests/data/scratch_folder.h"
#include "tests/ranks/ranks.h"

namespace laterna::tests {
namespace {

using launch::Config;
using launch::Trainer;

constexpr std::int64_t kSteps = 10;

/// Ten colourless glyphs, and a folder for what a training leaves: each rank has its own.
struct Place {
  Place() {
    data::GlyphOptions options;
    options.size = 8;
    options.count = 10;  // so that batches straddle epochs
    data::make_glyphs(options, folder / "glyphs");
    images = std::make_unique<data::ImageSet>(data::ImageSet::open(folder / "glyphs"));
  }
  data::ScratchFolder folder;
  std::unique_ptr<data::ImageSet> images;
};

const Place& place() {
  static const Place here;
  return here;
}

/// A tiny model with a live lateral connection; the rate is high so that ten steps go somewhere.
Config tiny(std::int64_t batch, std::int64_t micro_batch, const char* precision = "float64") {
  return launch::parse_config(
      R"([model]
image_size = 8
patch = 4
width = 8
depth = 2
heads = 2
spiking_steps = 3
gamma_start = 0.5
[diffusion]
steps = 50
[sampling]
steps = 50
[training]
steps = 10
learning_rate = 1e-2
warmup = 3
decay = 0.4
ema = 0.3
[data]
flip = true
)",
      "test",
      {fmt::format("training.batch={}", batch), fmt::format("training.micro_batch={}", micro_batch),
       fmt::format("training.precision={}", precision)});
}

struct Outcome {
  std::vector<double> losses, norms;
  at::Tensor weights, average;
};

/// The whole of training, on this rank alone.
Outcome plainly(const Config& config) {
  const auto& m = config.model;
  const model::Parameters parameters(model::parameter_specs(m), at::kDouble, true);
  model::initialise(parameters, m, config.training.seed);
  const model::Denoiser denoiser(m, parameters, config.precision());
  const model::Diffusion diffusion(config.diffusion);
  model::Optimizer optimizer(parameters, config.training.ema);
  data::LoaderOptions options;
  options.seed = config.training.seed;
  options.global_batch = options.count = config.training.batch;
  options.flip = config.data.flip;
  data::Loader loader(*place().images, options);
  Outcome outcome;
  for (std::int64_t step = 0; step < kSteps; ++step) {
    data::Batch batch = loader.next();
    const at::Tensor pixels =
        at::from_blob(batch.pixels.data(), {options.count, 1, 8, 8}, at::kByte);
    const auto draws = diffusion.draw(config.training.seed, static_cast<std::uint64_t>(step), 0,
                                      options.count, {1, 8, 8}, at::kDouble);
    const at::Tensor x = diffusion.corrupt(model::to_signal(pixels, at::kDouble), draws);
    parameters.gradient().zero_();
    const at::Tensor epsilon = denoiser.forward(x, draws.t, denoiser.route(draws.t));
    const at::Tensor loss = (draws.noise - epsilon).square().mean();
    loss.backward();
    const double norm = parameters.gradient().norm().item<double>();
    optimizer.step(config.training.rate_at(step),
                   std::min(1.0, config.training.clip_norm / (norm + 1e-6)));
    outcome.losses.push_back(loss.item<double>());
    outcome.norms.push_back(norm);
  }
  outcome.weights = parameters.values();
  outcome.average = optimizer.average();
  return outcome;
}

/// Steps until `end`; false when ranks agreed to stop.
bool go_on(Trainer& trainer, Outcome& outcome, std::int64_t end) {
  launch::StopRequest stop(place().folder.path(), world().control());
  while (trainer.state().step < end) {
    const auto record = trainer.train_step(stop);
    if (!record) return false;
    EXPECT_EQ(record->step, trainer.state().step);
    outcome.losses.push_back(record->loss);
    outcome.norms.push_back(record->grad_norm);
  }
  outcome.weights = trainer.parameters().values().clone();
  outcome.average = trainer.state().optimizer.average().clone();
  return true;
}

Outcome on_ranks(const Config& config) {
  Trainer trainer(config, *place().images, world());
  trainer.start(0);
  Outcome outcome;
  EXPECT_TRUE(go_on(trainer, outcome, kSteps));
  return outcome;
}

void expect_equal_on_all_ranks(const Outcome& outcome) {
  const std::vector<std::string> names = {"losses", "norms", "weights", "average"};
  const std::vector<at::Tensor> tensors = {at::tensor(outcome.losses, at::kDouble),
                                           at::tensor(outcome.norms, at::kDouble), outcome.weights,
                                           outcome.average};
  const auto divergence = dist::find_divergence(world().control(), names, tensors);
  EXPECT_FALSE(divergence) << divergence->name;
}

void expect_same_bits(const Outcome& actual, const Outcome& expected) {
  EXPECT_EQ(actual.losses, expected.losses);
  EXPECT_EQ(actual.norms, expected.norms);
  EXPECT_TRUE(at::equal(actual.weights, expected.weights));
  EXPECT_TRUE(at::equal(actual.average, expected.average));
}

TEST(RanksTrainer, AnyRanksAndMicroBatchesGiveTheSameLosses) {
  for (const std::int64_t batch : {7, 8}) {
    const Outcome expected = plainly(tiny(batch, 0));
    const model::Parameters start(model::parameter_specs(tiny(7, 0).model), at::kDouble, false);
    model::initialise(start, tiny(7, 0).model, 0);
    const at::Tensor moved = expected.weights.ne(start.values()).to(at::kDouble);
    EXPECT_GT(moved.mean().item<double>(), 0.5);  // the rest is the time table, and padding
    for (const std::int64_t micro_batch : {1, 3, 0}) {
      SCOPED_TRACE(fmt::format("batch {}, micro-batch {}", batch, micro_batch));
      const Outcome actual = on_ranks(tiny(batch, micro_batch));
      for (std::int64_t step = 0; step < kSteps; ++step) {
        const auto s = static_cast<std::size_t>(step);
        EXPECT_NEAR(actual.losses[s] / expected.losses[s], 1, 1e-11) << "step " << step;
        EXPECT_NEAR(actual.norms[s] / expected.norms[s], 1, 1e-10) << "step " << step;
      }
      EXPECT_TRUE(at::allclose(actual.weights, expected.weights, 1e-8, 1e-9));
      EXPECT_TRUE(at::allclose(actual.average, expected.average, 1e-8, 1e-9));
      expect_equal_on_all_ranks(actual);
    }
  }
}

TEST(RanksTrainer, RunsAreEqualBitForBit) {
  for (const char* precision : {"float32", "bfloat16"}) {
    const Outcome first = on_ranks(tiny(7, 2, precision));
    expect_same_bits(on_ranks(tiny(7, 2, precision)), first);
    expect_equal_on_all_ranks(first);
  }
}

TEST(RanksTrainer, GoesOnFromACheckpointBitForBit) {
  const Config config = tiny(7, 2, "float32");
  const Outcome whole = on_ranks(config);
  const data::ScratchFolder run;
  Outcome parts;
  {
    Trainer trainer(config, *place().images, world());
    trainer.start(0);
    EXPECT_TRUE(go_on(trainer, parts, 4));
    launch::save_checkpoint(run.path(), config, place().images->sha256(), trainer.state());
  }
  Trainer trainer(config, *place().images, world());
  auto state = trainer.state();
  launch::load_checkpoint(run.path(), launch::read_manifest(run.path(), 4), state);
  trainer.start(state.step);
  EXPECT_TRUE(go_on(trainer, parts, kSteps));
  expect_same_bits(parts, whole);
}

TEST(RanksTrainer, AStepThatIsNotDoneLeavesNoTrace) {
  Trainer trainer(tiny(7, 1, "float32"), *place().images, world());
  trainer.start(0);
  Outcome outcome;
  EXPECT_TRUE(go_on(trainer, outcome, 2));
  if (world().rank() == 0) launch::StopRequest::leave(place().folder.path());
  world().control().barrier()->wait();
  Outcome none;
  EXPECT_FALSE(go_on(trainer, none, 3));
  EXPECT_EQ(trainer.state().step, 2);
  EXPECT_EQ(trainer.state().optimizer.updates(), 2);
  EXPECT_TRUE(at::equal(trainer.parameters().values(), outcome.weights));
  EXPECT_TRUE(at::equal(trainer.state().optimizer.average(), outcome.average));
  launch::StopRequest(place().folder.path(), world().control()).clear();
  world().control().barrier()->wait();
}

TEST(RanksTrainer, ALossThatIsNotFiniteEndsAllRanksAlike) {
  Trainer trainer(tiny(7, 0, "float32"), *place().images, world());
  trainer.parameters()["head.bias"].detach().fill_(std::numeric_limits<float>::quiet_NaN());
  trainer.start(0);
  launch::StopRequest stop(place().folder.path(), world().control());
  data::expect_error<std::runtime_error>([&] { trainer.train_step(stop); },
                                         {"step 1", "not finite", "learning_rate"});
  EXPECT_EQ(trainer.state().step, 0);
}

// Started each with a share of its own memory, the ranks still take the same micro-batch count: no
// rank waits in a round that another does not have.
TEST(RanksTrainer, MicroBatchesFitTheLargestShare) {
  const std::int64_t largest = launch::share_of(8, 0, world().size()).count;
  EXPECT_EQ(launch::choose_micro_batch(tiny(8, 3), world()), std::min<std::int64_t>(3, largest));
  EXPECT_EQ(launch::choose_micro_batch(tiny(8, 0), world()), largest);  // it is small
  const std::int64_t mine = world().rank() + 5;
  EXPECT_EQ(launch::same_on_all_ranks(world(), mine), 5);
}

TEST(RanksTogether, AFailureOfOneRankIsEverybodys) {
  EXPECT_NO_THROW(launch::together(world(), [] {}));
  for (int failing = 0; failing < world().size(); ++failing) {
    const auto work = [&] {
      if (world().rank() == failing) throw launch::UsageError("model.width is odd");
    };
    try {
      launch::together(world(), work);
      ADD_FAILURE() << "nothing was thrown";
    } catch (const launch::TogetherError& error) {
      EXPECT_EQ(error.status, 2);
      EXPECT_NE(std::string(error.what()).find("model.width is odd"), std::string::npos);
    }
  }
}

}  // namespace
}  // namespace laterna::tests
