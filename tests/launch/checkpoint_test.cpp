// Checkpoints and exported models: reloading, damage, pruning, and failures to write.
#include "launch/checkpoint/checkpoint.h"

#include <ATen/ATen.h>

#include <nlohmann/json.hpp>

#include "data/error.h"
#include "launch/checkpoint/tensor_file.h"
#include "model/initialise.h"
#include "tests/data/scratch_folder.h"
#include "tests/launch/save.h"
#include "tests/launch/tiny.h"

namespace laterna::launch {
namespace {

namespace fs = std::filesystem;
using data::expect_error;
using data::InputError;
using data::ScratchFolder;

/// A model and its optimiser after some updates, with no tensor left at zero.
struct Trained {
  explicit Trained(at::ScalarType dtype, std::int64_t updates = 3)
      : parameters(model::parameter_specs(tiny().model), dtype, true),
        optimizer((model::initialise(parameters, tiny().model, 1), parameters), 0.9) {
    at::manual_seed(updates);
    for (std::int64_t n = 0; n < updates; ++n) {
      for (const auto& view : parameters.views()) {
        view.grad().copy_(at::randn(view.sizes(), view.options().requires_grad(false)));
      }
      optimizer.step(0.01, 1);
    }
  }
  TrainingState at_step(std::int64_t step) { return {step, parameters, optimizer}; }

  model::Parameters parameters;
  model::Optimizer optimizer;
};

/// Returns the world of a program that was started without mpirun.
dist::World& one_rank() {
  static dist::World world;
  return world;
}

fs::path folder_of(const fs::path& run, const char* step) {
  return run / "checkpoints" / (std::string("step-") + step);
}

void save(const fs::path& run, std::int64_t step) {
  Trained trained(at::kFloat, 1);
  EXPECT_GT(save_checkpoint(run, tiny(), "hash", trained.at_step(step), one_rank()), 0);
}

TEST(Checkpoint, IsReloadedBitForBit) {
  for (const auto dtype : {at::kFloat, at::kDouble}) {
    const ScratchFolder scratch;
    Trained trained(dtype);
    const auto bytes = save_checkpoint(scratch.path(), tiny({"training.seed=4"}), "abc",
                                       trained.at_step(12000), one_rank());
    const fs::path folder = folder_of(scratch.path(), "000012000");
    EXPECT_EQ(complete_checkpoints(scratch.path()), std::vector<std::int64_t>{12000});
    const Manifest manifest = read_manifest(scratch.path(), 12000);
    EXPECT_EQ(manifest.step, 12000);
    EXPECT_EQ(manifest.data_sha256, "abc");
    EXPECT_EQ(to_toml(manifest.config), to_toml(tiny({"training.seed=4"})));
    ASSERT_EQ(manifest.files.size(), 1U);
    EXPECT_EQ(manifest.files[0].bytes, bytes);
    EXPECT_EQ(static_cast<std::int64_t>(fs::file_size(folder / manifest.files[0].name)), bytes);
    verify_checkpoint(scratch.path(), manifest);
    const auto text = nlohmann::json::parse(data::get(folder / "manifest.json"));
    for (const auto& spec : trained.parameters.specs()) {
      EXPECT_EQ(text["parameters"][spec.name]["shape"], nlohmann::json(spec.shape));
      EXPECT_EQ(text["parameters"][spec.name]["file"], manifest.files[0].name);
    }

    Trained other(dtype, 1);
    auto state = other.at_step(0);
    load_checkpoint(scratch.path(), manifest, state);
    EXPECT_EQ(state.step, 12000);
    EXPECT_EQ(other.optimizer.updates(), 3);
    EXPECT_TRUE(at::equal(other.parameters.values(), trained.parameters.values()));
    EXPECT_TRUE(at::equal(other.optimizer.first_moment(), trained.optimizer.first_moment()));
    EXPECT_TRUE(at::equal(other.optimizer.second_moment(), trained.optimizer.second_moment()));
    EXPECT_TRUE(at::equal(other.optimizer.average(), trained.optimizer.average()));

    const LoadedWeights average = load_weights({scratch.path(), -1, false}, dtype);
    const LoadedWeights raw = load_weights({scratch.path(), 12000, true}, dtype);
    EXPECT_EQ(average.step, 12000);
    EXPECT_TRUE(at::equal(average.parameters.values(), trained.optimizer.average()));
    EXPECT_TRUE(at::equal(raw.parameters.values(), trained.parameters.values()));
  }
}

TEST(Checkpoint, IsWrittenOncePerStep) {
  const ScratchFolder scratch;
  Trained trained(at::kFloat);
  EXPECT_GT(save_checkpoint(scratch.path(), tiny(), "", trained.at_step(5), one_rank()), 0);
  const std::string before = data::get(folder_of(scratch.path(), "000000005") / "manifest.json");
  EXPECT_EQ(save_checkpoint(scratch.path(), tiny(), "", trained.at_step(5), one_rank()), 0);
  EXPECT_EQ(data::get(folder_of(scratch.path(), "000000005") / "manifest.json"), before);
}

TEST(Checkpoint, ReportsTruncatedAndChangedFiles) {
  const ScratchFolder scratch;
  save(scratch.path(), 5);
  const Manifest manifest = read_manifest(scratch.path(), 5);
  const fs::path shard = folder_of(scratch.path(), "000000005") / manifest.files[0].name;
  const std::string whole = data::get(shard);
  const auto expect_damaged = [&](const std::string& what) {
    expect_error<InputError>([&] { verify_checkpoint(scratch.path(), manifest); },
                             {shard.string(), what, "step 5 is damaged"});
    expect_error<InputError>(
        [&] {
          load_weights({scratch.path(), -1, false}, at::kFloat);
        },
        {shard.string()});
  };
  for (const std::size_t bytes : {std::size_t{0}, whole.size() / 2, whole.size() - 1}) {
    data::put(shard, whole.substr(0, bytes));
    expect_damaged(fmt::format("has {} bytes", bytes));
  }
  data::put(shard, whole + "x");
  expect_damaged("bytes");
  for (const std::size_t place : {std::size_t{0}, whole.size() / 2, whole.size() - 1}) {
    std::string flipped = whole;
    flipped[place] = static_cast<char>(flipped[place] ^ 1);
    data::put(shard, flipped);
    expect_damaged("SHA-256");
  }
  fs::remove(shard);
  expect_damaged("missing");
  data::put(shard, whole);
  EXPECT_NO_THROW(verify_checkpoint(scratch.path(), manifest));
}

TEST(Checkpoint, ReportsABrokenManifest) {
  const ScratchFolder scratch;
  save(scratch.path(), 5);
  const fs::path path = folder_of(scratch.path(), "000000005") / "manifest.json";
  const std::string whole = data::get(path);
  for (const std::string& text :
       {std::string(), whole.substr(0, whole.size() / 2), std::string("{}"), std::string("[1]")}) {
    data::put(path, text);
    expect_error<InputError>([&] { read_manifest(scratch.path(), 5); },
                             {path.string(), "step 5 is damaged"});
  }
}

TEST(Checkpoint, AManifestVouchesForEveryFileThatItNames) {
  const ScratchFolder scratch;
  save(scratch.path(), 5);
  const fs::path path = folder_of(scratch.path(), "000000005") / "manifest.json";
  const auto whole = nlohmann::json::parse(data::get(path));
  const auto expect_refused = [&](const nlohmann::json& manifest, const std::string& what) {
    data::put(path, manifest.dump());
    expect_error<InputError>([&] { read_manifest(scratch.path(), 5); },
                             {path.string(), what, "step 5 is damaged"});
  };
  const auto with = [&](const char* pointer, const nlohmann::json& value) {
    auto changed = whole;
    changed[nlohmann::json::json_pointer(pointer)] = value;
    return changed;
  };
  expect_refused(with("/format", "other"), "not a checkpoint");
  data::put(path, with("/version", 2).dump());
  expect_error<UsageError>([&] { read_manifest(scratch.path(), 5); },
                           {path.string(), "another version", "step 5"});
  expect_refused(with("/step", 6), "belongs to step 6");
  expect_refused(with("/files", nlohmann::json::array()), "`files` does not list");
  expect_refused(with("/files/0/name", "../rank-00000.h5"), "not a plain file name");
  expect_refused(with("/parameters/head.bias/file", "/tmp/other.h5"), "`files` does not list");
}

TEST(Checkpoint, IsIncompleteWithoutItsManifest) {
  const ScratchFolder scratch;
  EXPECT_TRUE(complete_checkpoints(scratch.path()).empty());
  expect_error<InputError>(
      [&] {
        load_weights({scratch.path(), -1, false}, at::kFloat);
      },
      {scratch.path().string(), "no complete checkpoint"});
  save(scratch.path(), 5);
  save(scratch.path(), 10);
  fs::remove(folder_of(scratch.path(), "000000010") / "manifest.json");
  data::put(scratch / "checkpoints/notes.txt", "mine");
  data::put(scratch / "checkpoints/step-old/manifest.json", "mine");
  EXPECT_EQ(complete_checkpoints(scratch.path()), std::vector<std::int64_t>{5});
  EXPECT_EQ(load_weights({scratch.path(), -1, false}, at::kFloat).step, 5);
  expect_error<InputError>(
      [&] {
        load_weights({scratch.path(), 10, false}, at::kFloat);
      },
      {"10", "available steps: 5"});
  // A later save of the same step overwrites what a crash left.
  data::put(folder_of(scratch.path(), "000000010") / "rank-00000.h5", "torn");
  save(scratch.path(), 10);
  EXPECT_NO_THROW(verify_checkpoint(scratch.path(), read_manifest(scratch.path(), 10)));
}

TEST(Checkpoint, PruningKeepsTheNewestAndRemovesIncompleteOnes) {
  const ScratchFolder scratch;
  for (const std::int64_t step : {5, 10, 15, 20, 1000000000}) save(scratch.path(), step);
  fs::remove(folder_of(scratch.path(), "000000015") / "manifest.json");
  data::put(scratch / "checkpoints/notes.txt", "mine");
  prune_checkpoints(scratch.path(), 2);
  EXPECT_EQ(complete_checkpoints(scratch.path()), (std::vector<std::int64_t>{20, 1000000000}));
  EXPECT_EQ(std::distance(fs::directory_iterator(scratch / "checkpoints"), {}), 3);
  EXPECT_EQ(data::get(scratch / "checkpoints/notes.txt"), "mine");
  prune_checkpoints(scratch.path(), 5);
  EXPECT_EQ(complete_checkpoints(scratch.path()).size(), 2U);
  prune_checkpoints(scratch / "nowhere", 1);
}

TEST(Checkpoint, PruningKeepsTheBest) {
  const ScratchFolder scratch;
  for (const std::int64_t step : {5, 10, 15}) save(scratch.path(), step);
  EXPECT_FALSE(best_checkpoint(scratch.path()));
  set_best_checkpoint(scratch.path(), {5, 12.5, "so and so"});
  ASSERT_TRUE(best_checkpoint(scratch.path()));
  EXPECT_EQ(best_checkpoint(scratch.path())->fid, 12.5);
  EXPECT_EQ(best_checkpoint(scratch.path())->measured, "so and so");
  prune_checkpoints(scratch.path(), 1);
  EXPECT_EQ(complete_checkpoints(scratch.path()), (std::vector<std::int64_t>{5, 15}));
  set_best_checkpoint(scratch.path(), {15, 10, ""});
  prune_checkpoints(scratch.path(), 1);
  EXPECT_EQ(complete_checkpoints(scratch.path()), (std::vector<std::int64_t>{15}));
}

TEST(Checkpoint, IgnoresAnInvalidBestFile) {
  const ScratchFolder scratch;
  save(scratch.path(), 5);
  const auto best = [&](const std::string& text) {
    data::put(scratch / "checkpoints/best.json", text);
    return best_checkpoint(scratch.path());
  };
  EXPECT_TRUE(best(R"({"step": 5, "fid": 1.5, "measured": ""})"));
  EXPECT_FALSE(best(R"({"step": 6, "fid": 1.5, "measured": ""})"));  // has no checkpoint
  EXPECT_FALSE(best(R"({"step": 5, "fid": null, "measured": ""})"));
  EXPECT_FALSE(best(R"({"step": 5, "fid": 1.5})"));  // from an earlier version
  EXPECT_FALSE(best(R"([5])"));
  EXPECT_FALSE(best(R"({"step": 5, "fi)"));
}

TEST(Checkpoint, IsAwaitedUntilItIsVisible) {
  const ScratchFolder scratch;
  int looks = 0;
  wait_for_checkpoint(scratch.path(), 5, 60, [&] {
    if (++looks == 2) save(scratch.path(), 5);
  });
  EXPECT_EQ(looks, 2);
  expect_error<data::InputError>(
      [&] { wait_for_checkpoint(scratch.path(), 6, 0.2, [] {}); },
      {scratch.path().string(), "step 6", "file system that all hosts share"});
}

TEST(Checkpoint, IsSetAsideWhenDamaged) {
  const ScratchFolder scratch;
  save(scratch.path(), 5);
  save(scratch.path(), 10);
  set_aside_checkpoint(scratch.path(), 10);
  EXPECT_EQ(complete_checkpoints(scratch.path()), (std::vector<std::int64_t>{5}));
  EXPECT_TRUE(fs::exists(scratch / "checkpoints/step-000000010.damaged/manifest.json"));
  save(scratch.path(), 10);
  set_aside_checkpoint(scratch.path(), 10);  // replaces the earlier one
  save(scratch.path(), 10);
  EXPECT_EQ(complete_checkpoints(scratch.path()), (std::vector<std::int64_t>{5, 10}));
}

// A save contains the state at its beginning, whatever training changes meanwhile.
TEST(CheckpointWriter, WritesInTheBackground) {
  const ScratchFolder scratch;
  Trained trained(at::kFloat, 1);
  std::vector<Saved> ended;
  const Config config = tiny();
  CheckpointWriter writer(scratch.path(), config, "", one_rank(), nullptr,
                          [&](const Saved& saved) { ended.push_back(saved); });
  const at::Tensor before = trained.parameters.values().detach().clone();
  writer.begin(trained.at_step(5));
  trained.parameters.values().detach().add_(1);
  while (ended.empty()) writer.poll();
  EXPECT_EQ(ended[0].step, 5);
  EXPECT_EQ(ended[0].failure, "");
  EXPECT_GT(ended[0].record.bytes, 0);
  EXPECT_GT(ended[0].record.write_seconds, 0);
  const LoadedWeights raw = load_weights({scratch.path(), 5, true}, at::kFloat);
  EXPECT_TRUE(at::equal(raw.parameters.values(), before));
  writer.begin(trained.at_step(10));
  writer.begin(trained.at_step(15));  // waits for the previous save
  ASSERT_EQ(ended.size(), 2U);
  EXPECT_EQ(ended[1].step, 10);
  writer.finish();
  EXPECT_EQ(complete_checkpoints(scratch.path()), (std::vector<std::int64_t>{5, 10, 15}));
}

TEST(CheckpointWriter, SavesAgainAfterAFailure) {
  const ScratchFolder scratch;
  Trained trained(at::kFloat, 1);
  std::vector<Saved> ended;
  const Config config = tiny();
  CheckpointWriter writer(scratch.path(), config, "", one_rank(), nullptr,
                          [&](const Saved& saved) { ended.push_back(saved); });
  fs::create_directories(checkpoint_folder(scratch.path(), 5));
  data::make_full(checkpoint_folder(scratch.path(), 5) / "rank-00000.h5");
  writer.begin(trained.at_step(5));
  writer.begin(trained.at_step(6));
  writer.finish();
  ASSERT_EQ(ended.size(), 2U);
  EXPECT_NE(ended[0].failure.find("No space left"), std::string::npos) << ended[0].failure;
  EXPECT_EQ(ended[1].failure, "");
  EXPECT_EQ(complete_checkpoints(scratch.path()), (std::vector<std::int64_t>{6}));
}

TEST(Checkpoint, ReportsWriteFailures) {
  const ScratchFolder scratch;
  Trained trained(at::kFloat, 1);
  fs::create_directories(folder_of(scratch.path(), "000000005"));
  data::make_full(folder_of(scratch.path(), "000000005") / "rank-00000.h5");
  expect_error<data::WriteError>(
      [&] { save_checkpoint(scratch.path(), tiny(), "", trained.at_step(5), one_rank()); },
      {"rank-00000.h5", "No space left"});
  data::put(scratch / "file", "x");
  expect_error<data::WriteError>(
      [&] { save_checkpoint(scratch / "file", tiny(), "", trained.at_step(5), one_rank()); },
      {(scratch / "file").string()});
  EXPECT_TRUE(complete_checkpoints(scratch.path()).empty());
}

TEST(Export, IsReadBackWithItsConfiguration) {
  const ScratchFolder scratch;
  const Trained trained(at::kFloat);
  write_model(scratch / "model.h5", tiny(), trained.parameters.specs(),
              trained.parameters.values());
  const LoadedModel back = read_model(scratch / "model.h5", at::kFloat, false);
  EXPECT_EQ(to_toml(back.config), to_toml(tiny()));
  EXPECT_TRUE(at::equal(back.parameters.values(), trained.parameters.values()));
  EXPECT_FALSE(fs::exists(scratch / "model.h5.part"));
}

TEST(Export, ReportsAnotherModel) {
  const ScratchFolder scratch;
  const Trained trained(at::kFloat);
  write_model(scratch / "model.h5", tiny({"model.width=16"}), trained.parameters.specs(),
              trained.parameters.values());
  expect_error<InputError>([&] { read_model(scratch / "model.h5", at::kFloat, false); },
                           {"model.h5", "embed.weight", "shape", "16"});
  expect_error<InputError>([&] { read_model(scratch / "none.h5", at::kFloat, false); },
                           {"none.h5"});
}

}  // namespace
}  // namespace laterna::launch
