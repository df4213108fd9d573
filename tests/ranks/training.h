// Trainings of a tiny model for the tests of this folder: where they run, and what they leave.
#pragma once

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <map>
#include <memory>
#include <string>
#include <vector>

#include "data/pictures/glyphs.h"
#include "launch/collective.h"
#include "launch/training/trainer.h"
#include "tests/data/scratch_folder.h"
#include "tests/ranks/ranks.h"

namespace laterna::tests {

using launch::Config;
using launch::Trainer;

inline constexpr std::int64_t kSteps = 10;

/// Ten greyscale glyphs, and a folder for what a training run leaves: each rank has its own.
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

inline const Place& place() {
  static const Place here;
  return here;
}

/// Returns a tiny model with a non-zero lateral connection; the learning rate is high so that ten
/// steps change the weights.
inline Config tiny(std::int64_t batch, std::int64_t micro_batch,
                   const char* precision = "float64") {
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

using Tensors = std::map<std::string, at::Tensor>;

struct Outcome {
  std::vector<double> losses, norms;
  Tensors weights, average;  // by parameter
  std::vector<monitoring::StepRecord> records;
};

inline Tensors by_name(const model::Parameters& parameters, const at::Tensor& flat) {
  Tensors all;
  for (const auto& spec : parameters.specs()) {
    all[spec.name] = model::Parameters::view_of(flat, spec).detach().cpu().clone();
  }
  return all;
}

/// Trains until step `end`; returns false when the ranks agreed to stop.
inline bool train_until(Trainer& trainer, Outcome& outcome, std::int64_t end) {
  launch::StopRequest stop(place().folder.path(), 1, world().control());
  while (trainer.state().step < end) {
    const auto record = trainer.train_step(stop);
    if (!record) return false;
    EXPECT_EQ(record->step, trainer.state().step);
    outcome.losses.push_back(record->loss);
    outcome.norms.push_back(record->grad_norm);
    outcome.records.push_back(*record);
  }
  outcome.weights = by_name(trainer.parameters(), trainer.parameters().values());
  outcome.average = by_name(trainer.parameters(), trainer.state().optimizer.average());
  return true;
}

inline Outcome on_ranks(const Config& config) {
  launch::form_groups(world(), config);
  Trainer trainer(config, *place().images, world());
  trainer.start(0);
  Outcome outcome;
  EXPECT_TRUE(train_until(trainer, outcome, kSteps));
  return outcome;
}

/// Returns the sizes of expert-parallel groups that this world can have.
inline std::vector<std::int64_t> group_sizes() {
  std::vector<std::int64_t> sizes;
  for (std::int64_t size = 1; size <= world().size(); ++size) {
    if (world().size() % size == 0) sizes.push_back(size);
  }
  return sizes;
}

inline void expect_same_bits(const Tensors& actual, const Tensors& expected) {
  ASSERT_EQ(actual.size(), expected.size());
  for (const auto& [name, tensor] : expected) EXPECT_TRUE(at::equal(actual.at(name), tensor));
}

inline void expect_same_bits(const Outcome& actual, const Outcome& expected) {
  EXPECT_EQ(actual.losses, expected.losses);
  EXPECT_EQ(actual.norms, expected.norms);
  expect_same_bits(actual.weights, expected.weights);
  expect_same_bits(actual.average, expected.average);
}

}  // namespace laterna::tests
