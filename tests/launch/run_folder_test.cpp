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
  EXPECT_EQ(to_toml(folder.reconcile(tiny())), to_toml(tiny()));
  folder.store(tiny({"training.micro_batch=5"}));
  // A start that failed before its first log line does not bind the next one.
  EXPECT_EQ(to_toml(folder.reconcile(tiny({"model.width=16"}))), to_toml(tiny({"model.width=16"})));
  data::put(folder.log_file(), "{}\n");
  // A micro-batch chosen at the first start is kept, unless another is asked for.
  EXPECT_EQ(folder.reconcile(tiny()).training.micro_batch, 5);
  EXPECT_EQ(folder.reconcile(tiny({"training.micro_batch=3"})).training.micro_batch, 3);
  const Config later = folder.reconcile(tiny({"training.steps=9", "checkpoint.keep=7"}));
  EXPECT_EQ(later.training.steps, 9);
  EXPECT_EQ(later.checkpoint.keep, 7);
  expect_error<UsageError>([&] { folder.reconcile(tiny({"model.width=16"})); },
                           {folder.path().string(), "model.width", "8", "16"});
  expect_error<UsageError>(
      [&] {
        folder.reconcile(tiny({"model.width=16", "training.seed=3"}));
      },
      {"model.width", "1 other"});
}

}  // namespace
}  // namespace laterna::launch
