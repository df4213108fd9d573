// The folder of a training run: who may use it, and with which configuration it may resume.
#include "launch/training/run_folder.h"

#include "data/error.h"
#include "tests/data/scratch_folder.h"
#include "tests/launch/tiny.h"

namespace laterna::launch {
namespace {

namespace fs = std::filesystem;
using data::expect_error;
using data::ScratchFolder;

TEST(RunFolder, IsCreatedAndLockedAgainstASecondTraining) {
  const ScratchFolder scratch;
  const fs::path path = scratch / "runs/deep/new";
  {
    const RunFolder first(path, true);
    EXPECT_TRUE(fs::is_directory(path));
    expect_error<UsageError>([&] { RunFolder(path, true); },
                             {path.string(), "another training", "laterna stop"});
    EXPECT_NO_THROW(RunFolder(path, false));  // another rank of the same training
    first.store(tiny());
    EXPECT_EQ(to_toml(read_config(first.config_file(), {})), to_toml(tiny()));
  }
  EXPECT_NO_THROW(RunFolder(path, true));
}

TEST(RunFolder, RefusesAFolderOfOtherFiles) {
  const ScratchFolder scratch;
  data::put(scratch / "photos/holiday.jpg", "x");
  expect_error<UsageError>([&] { RunFolder(scratch / "photos", true); },
                           {(scratch / "photos").string(), "no run", "new folder"});
  EXPECT_EQ(std::distance(fs::directory_iterator(scratch / "photos"), {}), 1);
  fs::create_directories(scratch / "empty");
  EXPECT_NO_THROW(RunFolder(scratch / "empty", true));
  EXPECT_NO_THROW(RunFolder(scratch / "empty", true));  // a start that crashed early
}

TEST(RunFolder, ReportsAFolderThatCannotBeCreated) {
  const ScratchFolder scratch;
  data::put(scratch / "file", "x");
  expect_error<data::WriteError>([&] { RunFolder(scratch / "file/run", true); },
                                 {(scratch / "file/run").string(), "Not a directory", "--run"});
  expect_error<data::WriteError>([&] { RunFolder("/proc/run", true); }, {"/proc/run", "--run"});
}

TEST(RunFolder, ResumesOnlyWithItsConfiguration) {
  const ScratchFolder scratch;
  const RunFolder folder(scratch / "run", true);
  const auto reconcile = [&](const Config& config) {
    return folder.reconcile(config, [](const std::string& text) { ADD_FAILURE() << text; });
  };
  EXPECT_EQ(to_toml(reconcile(tiny())), to_toml(tiny()));
  folder.store(tiny({"training.micro_batch=5"}));
  // A start that failed before its first log line does not bind the next one.
  EXPECT_EQ(to_toml(reconcile(tiny({"model.width=16"}))), to_toml(tiny({"model.width=16"})));
  data::put(folder.log_file(), "{}\n");
  // A micro-batch chosen at the first start is kept, unless another is asked for.
  EXPECT_EQ(reconcile(tiny()).training.micro_batch, 5);
  EXPECT_EQ(reconcile(tiny({"training.micro_batch=3"})).training.micro_batch, 3);
  const Config later = reconcile(tiny({"training.steps=9", "checkpoint.keep=7"}));
  EXPECT_EQ(later.training.steps, 9);
  EXPECT_EQ(later.checkpoint.keep, 7);
  expect_error<UsageError>([&] { reconcile(tiny({"model.width=16"})); },
                           {folder.path().string(), "model.width", "8", "16"});
  expect_error<UsageError>(
      [&] {
        reconcile(tiny({"model.width=16", "training.seed=3"}));
      },
      {"model.width", "1 other"});
}

TEST(RunFolder, SaysWhichStoredConfigurationIsMissing) {
  const ScratchFolder scratch;
  const RunFolder folder(scratch / "run", true);
  std::vector<std::string> said;
  const auto reconcile = [&](const Config& config) {
    return folder.reconcile(config, [&](const std::string& text) { said.push_back(text); });
  };
  data::put(folder.log_file(), "{}\n");
  reconcile(tiny({"model.width=16"}));
  data::put(folder.config_file(), "");
  reconcile(tiny({"model.width=16"}));
  ASSERT_EQ(said.size(), 2U);
  EXPECT_NE(said[0].find("config.toml is missing; no checkpoint"), std::string::npos) << said[0];
  EXPECT_NE(said[1].find("config.toml is empty"), std::string::npos) << said[1];
}

TEST(RunFolder, IsCreatedAgainWhenItWasMovedOrRemoved) {
  const ScratchFolder scratch;
  const fs::path path = scratch / "run";
  RunFolder folder(path, true);
  folder.store(tiny());
  const auto owner = folder.owner();
  EXPECT_FALSE(folder.restore(tiny()));
  fs::rename(path, scratch / "moved");
  EXPECT_TRUE(folder.restore(tiny()));
  EXPECT_FALSE(folder.restore(tiny()));
  EXPECT_EQ(folder.owner(), owner);
  EXPECT_EQ(to_toml(read_config(folder.config_file(), {})), to_toml(tiny()));
  expect_error<UsageError>([&] { RunFolder(path, true); }, {"another training"});
  fs::remove_all(path);
  fs::create_directories(path);
  data::put(path / "config.toml", to_toml(tiny({"training.seed=8"})));
  for (int again = 0; again < 2; ++again) {
    expect_error<UsageError>([&] { folder.restore(tiny()); }, {path.string(), "another run"});
  }
  EXPECT_NO_THROW(RunFolder(path, true));  // the other run's folder was not locked
}

TEST(RunFolder, IsTheSameOnAllRanks) {
  const ScratchFolder scratch;
  const RunFolder folder(scratch / "run", true);
  RunFolder(scratch / "run", false).await_owner(folder.owner(), 0);
  fs::create_directories(scratch / "other");
  expect_error<UsageError>([&] { RunFolder(scratch / "other", false).await_owner(1, 0); },
                           {(scratch / "other").string(), "host", "file system"});
}

}  // namespace
}  // namespace laterna::launch
