// Training on ranks against a plain loop over whole batches, which is written here without
// communication, micro-batches, batch shares or shards of candidates. Covers ranks without a sample
// (batch 7 on 9 ranks), ranks without an assignment, and replicas of candidates. On a host with
// GPUs the ranks train there, and the plain loop on the CPU.
#include "launch/training/trainer.h"

#include "dist/replica_check.h"
#include "model/initialise.h"
#include "tests/ranks/training.h"

namespace laterna::tests {
namespace {

/// Returns min(SNR, 5) / SNR of each t: [B].
at::Tensor min_snr(const model::Diffusion& diffusion, const at::Tensor& t) {
  at::Tensor weights = at::empty(t.sizes(), at::kDouble);
  for (std::int64_t i = 0; i < t.size(0); ++i) {
    const double kept = diffusion.alpha_bar(t[i].item<std::int64_t>()), snr = kept / (1 - kept);
    weights[i] = std::min(snr, 5.0) / snr;
  }
  return weights;
}

/// Trains on the whole batch of each step, on this rank only.
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
    const at::Tensor squares = (draws.noise - epsilon).square().mean({1, 2, 3});  // [B]
    const at::Tensor loss = squares.mean();
    (config.training.weighting == "min_snr" ? (squares * min_snr(diffusion, draws.t)).mean() : loss)
        .backward();
    const double norm = parameters.gradient().norm().item<double>();
    optimizer.step(config.training.rate_at(step),
                   std::min(1.0, config.training.clip_norm / (norm + 1e-6)));
    outcome.losses.push_back(loss.item<double>());
    outcome.norms.push_back(norm);
  }
  outcome.weights = by_name(parameters, parameters.values());
  outcome.average = by_name(parameters, optimizer.average());
  return outcome;
}

/// Checks that all ranks of `communicator` hold the same bits in `tensors`.
void expect_equal(dist::Communicator& communicator, const Tensors& tensors) {
  std::vector<std::string> names;
  std::vector<at::Tensor> values;
  for (const auto& [name, tensor] : tensors) {
    names.push_back(name);
    values.push_back(tensor);
  }
  const auto divergence = dist::find_divergence(communicator, names, values);
  EXPECT_FALSE(divergence) << divergence->name;
}

void expect_equal_on_all_ranks(const Outcome& outcome) {
  expect_equal(world().control(), {{"losses", at::tensor(outcome.losses, at::kDouble)},
                                   {"norms", at::tensor(outcome.norms, at::kDouble)}});
  expect_equal(world().replica_group(), outcome.weights);  // a replica group holds one shard
  expect_equal(world().replica_group(), outcome.average);
  Tensors shared = outcome.weights;
  std::erase_if(shared, [](const auto& entry) {
    return entry.first.find(".candidates.") != std::string::npos &&
           entry.first.find(".candidates.norm.") == std::string::npos;
  });
  expect_equal(world().control(), shared);
}

void expect_close(const Outcome& actual, const Outcome& expected) {
  for (std::size_t s = 0; s < kSteps; ++s) {
    EXPECT_NEAR(actual.losses[s] / expected.losses[s], 1, 1e-11) << "step " << s;
    EXPECT_NEAR(actual.norms[s] / expected.norms[s], 1, 1e-10) << "step " << s;
  }
  for (const auto& [name, tensor] : actual.weights) {
    EXPECT_TRUE(at::allclose(tensor, expected.weights.at(name), 1e-8, 1e-9)) << name;
    EXPECT_TRUE(at::allclose(actual.average.at(name), expected.average.at(name), 1e-8, 1e-9));
  }
  expect_equal_on_all_ranks(actual);
}

TEST(RanksTrainer, AnyRanksAndMicroBatchesGiveTheSameLosses) {
  for (const std::int64_t batch : {7, 8}) {
    const Outcome expected = plainly(tiny(batch, 0));
    const model::Parameters start(model::parameter_specs(tiny(7, 0).model), at::kDouble, false);
    model::initialise(start, tiny(7, 0).model, 0);
    double moved = 0, all = 0;
    for (const auto& [name, tensor] : by_name(start, start.values())) {
      moved += expected.weights.at(name).ne(tensor).sum().item<double>();
      all += double(tensor.numel());
    }
    EXPECT_GT(moved / all, 0.5);  // the rest: unused rows of the time embedding
    for (const std::int64_t micro_batch : {1, 3, 0}) {
      SCOPED_TRACE(fmt::format("batch {}, micro-batch {}", batch, micro_batch));
      expect_close(on_ranks(tiny(batch, micro_batch)), expected);
    }
  }
}

TEST(RanksTrainer, ShardedCandidatesGiveTheSameLosses) {
  for (const auto& [candidates, selected] : {std::pair{2, 1}, std::pair{3, 2}, std::pair{5, 2}}) {
    Config config = tiny(7, 0);
    config.model.candidates = candidates, config.model.selected = selected;
    config.model.depth = 3, config.model.selection = "head";  // only the first layer selects...
    if (candidates == 3) config.model.selection = "full";     // ...and here all do
    const Outcome expected = plainly(config);
    for (const std::int64_t expert : group_sizes()) {
      for (const std::int64_t micro_batch : {2, 0}) {
        SCOPED_TRACE(fmt::format("N {}, EP {}, micro-batch {}", candidates, expert, micro_batch));
        config.parallel.expert = expert, config.training.micro_batch = micro_batch;
        const Outcome actual = on_ranks(config);
        expect_close(actual, expected);
        const auto& record = actual.records.back();
        std::int64_t assignments = 0;
        for (const auto& layer : record.assignments) {
          for (const auto count : layer) assignments += count;
        }
        const std::int64_t layers = config.model.selection == "full" ? 3 : 1;
        EXPECT_EQ(assignments, layers * 3 * 7 * selected);  // T = 3 steps of 7 samples
        EXPECT_EQ(record.exchange.empty(), expert == 1);
        if (expert == 1) continue;
        const auto& spikes = record.exchange[0];
        EXPECT_GT(spikes.blocks, 0);
        EXPECT_EQ(spikes.bytes, spikes.blocks * 4);  // 4 tokens of 8 spikes, in bits
        EXPECT_EQ(record.exchange[1].bytes, spikes.blocks * 4 * 8 * 8);  // in float64
        EXPECT_GE(record.imbalance, 1);
      }
    }
  }
}

TEST(RanksTrainer, WeightedSamplesGiveTheSameLosses) {
  Config config = tiny(7, 0);
  const Outcome uniform = plainly(config);
  config.training.weighting = "min_snr";
  const Outcome expected = plainly(config);
  EXPECT_EQ(expected.losses[0], uniform.losses[0]);  // the plain mean, before the first update
  EXPECT_LT(expected.norms[0], 0.95 * uniform.norms[0]);
  for (const std::int64_t expert : group_sizes()) {
    for (const std::int64_t micro_batch : {2, 0}) {
      SCOPED_TRACE(fmt::format("EP {}, micro-batch {}", expert, micro_batch));
      config.parallel.expert = expert, config.training.micro_batch = micro_batch;
      expect_close(on_ranks(config), expected);
    }
  }
}

TEST(RanksTrainer, RunsAreEqualBitForBit) {
  for (const char* precision : {"float32", "bfloat16"}) {
    for (const std::int64_t expert : group_sizes()) {
      Config config = tiny(7, 2, precision);
      config.parallel.expert = expert;
      const Outcome first = on_ranks(config);
      expect_same_bits(on_ranks(config), first);
      expect_equal_on_all_ranks(first);
    }
  }
}

// Even if each rank sees a different amount of free memory, all ranks take the same number of
// micro-batches: no rank waits in a micro-batch that another rank does not have.
TEST(RanksTrainer, MicroBatchesFitTheLargestShare) {
  const std::int64_t largest = data::share_of(8, 0, world().size()).count;
  EXPECT_EQ(launch::choose_micro_batch(tiny(8, 3), world()), std::min<std::int64_t>(3, largest));
  EXPECT_EQ(launch::choose_micro_batch(tiny(8, 0), world()), largest);  // a small model fits
  const std::int64_t mine = world().rank() + 5;
  EXPECT_EQ(launch::broadcast_from_root(world(), mine), 5);
}

}  // namespace
}  // namespace laterna::tests
