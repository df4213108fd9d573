// SHA-256 digests, and durable files: after a failed write the old file is still complete.
#include "data/files/durable_file.h"

#include "data/error.h"
#include "data/files/sha256.h"
#include "tests/data/scratch_folder.h"

namespace laterna::data {
namespace {

constexpr const char* kAbc = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";

TEST(Sha256, MatchesKnownAnswersInOneAndInSeveralUpdates) {
  EXPECT_EQ(sha256("abc", 3), kAbc);
  EXPECT_EQ(sha256("", 0), "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
  Sha256 digest;
  digest.update("a", 1);
  digest.update("bc", 2);
  EXPECT_EQ(digest.finish(), kAbc);
  digest.update("abc", 3);  // finish() has reset the digest
  EXPECT_EQ(digest.finish(), kAbc);
}

TEST(Sha256, HashesFilesAndNamesMissingOnes) {
  const ScratchFolder folder;
  put(folder / "abc", "abc");
  EXPECT_EQ(sha256_of_file(folder / "abc"), kAbc);
  expect_error<InputError>([&] { sha256_of_file(folder / "none"); }, {"none", "No such file"});
  expect_error<InputError>([&] { sha256_of_file(folder.path()); }, {folder.path(), "directory"});
}

TEST(DurableFile, ReplacesAFileAndLeavesNoPartFile) {
  const ScratchFolder folder;
  write_file_durably(folder / "state", "old");
  write_file_durably(folder / "state", "new");
  EXPECT_EQ(get(folder / "state"), "new");
  EXPECT_FALSE(std::filesystem::exists(folder / "state.part"));
}

TEST(DurableFile, FullDiskIsReportedAndKeepsTheOldFile) {
  const ScratchFolder folder;
  write_file_durably(folder / "state", "old");
  make_full(folder / "state.part");
  expect_error<WriteError>([&] { write_file_durably(folder / "state", "new"); },
                           {"state.part", "No space left on device", "free some space"});
  EXPECT_EQ(get(folder / "state"), "old");
}

TEST(DurableFile, UnwritableFolderIsNamed) {
  const ScratchFolder folder;
  put(folder / "file", "");
  expect_error<WriteError>([&] { write_file_durably(folder / "file/state", "x"); },
                           {"file/state", "cannot be created", "Not a directory"});
  expect_error<WriteError>([] { write_file_durably("/proc/laterna", "x"); }, {"/proc/laterna"});
  expect_error<WriteError>([&] { sync_folder(folder / "none"); }, {"none", "No such file"});
  expect_error<WriteError>([&] { sync_file(folder / "none"); }, {"none", "No such file"});
}

TEST(DurableFile, RenamesFilesAndFolders) {
  const ScratchFolder folder;
  put(folder / "a", "1");
  rename_durably(folder / "a", folder / "b");
  EXPECT_EQ(get(folder / "b"), "1");
  put(folder / "step.part/x", "2");
  rename_durably(folder / "step.part", folder / "step");
  EXPECT_EQ(get(folder / "step/x"), "2");
  expect_error<WriteError>([&] { rename_durably(folder / "b", folder / "no/such"); }, {"no/such"});
}

}  // namespace
}  // namespace laterna::data
