// Who may write a folder: one owner at a time, also where the file system has no locks.
#include "data/files/folder_lock.h"

#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include "data/error.h"
#include "data/host.h"
#include "tests/data/scratch_folder.h"

namespace laterna::data {
namespace {

/// Starts a process that holds the lock of `folder` until it is killed.
pid_t start_owner(const std::filesystem::path& folder) {
  const pid_t child = fork();
  if (child == 0) {
    const FolderLock lock(folder);
    for (;;) pause();
  }
  while (!FolderLock::holder(folder)) usleep(1000);
  return child;
}

void end(pid_t child) {
  kill(child, SIGKILL);
  waitpid(child, nullptr, 0);
}

/// Leaves what the owner of a lock leaves on a file system without locks.
void put_held(const std::filesystem::path& folder, const std::string& host, pid_t pid,
              const std::string& system, std::int64_t started = 1) {
  put(folder / "lock.held", "{\"host\": \"" + host + "\", \"pid\": " + std::to_string(pid) +
                                ", \"started\": " + std::to_string(started) +
                                ", \"id\": 7, \"system\": \"" + system + "\"}\n");
}

/// Returns this boot and namespace, as owners name it.
std::string system_of_this_process() {
  const ScratchFolder scratch;
  return FolderLock(scratch.path()).owner().system;
}

TEST(FolderLock, HasOneOwner) {
  const ScratchFolder scratch;
  EXPECT_FALSE(FolderLock::holder(scratch.path()));
  {
    const FolderLock lock(scratch.path());
    EXPECT_EQ(lock.owner().pid, getpid());
    EXPECT_EQ(FolderLock::holder(scratch.path()), lock.owner());
    EXPECT_THROW(FolderLock(scratch.path()), FolderLocked);
    EXPECT_TRUE(lock.is_in_place());
  }
  EXPECT_FALSE(FolderLock::holder(scratch.path()));
  EXPECT_FALSE(FolderLock::last_owner(scratch.path()));
  const FolderLock again(scratch.path());
  EXPECT_NE(again.owner().id, 0);
}

TEST(FolderLock, EndsWithItsProcess) {
  const ScratchFolder scratch;
  const pid_t owner = start_owner(scratch.path());
  try {
    const FolderLock second(scratch.path());
    ADD_FAILURE() << "two owners";
  } catch (const FolderLocked& locked) {
    EXPECT_EQ(locked.owner.pid, owner);
    EXPECT_NE(std::string(locked.what()).find(std::to_string(owner)), std::string::npos);
  }
  end(owner);
  EXPECT_FALSE(FolderLock::holder(scratch.path()));
  ASSERT_TRUE(FolderLock::last_owner(scratch.path()));  // it did not end by itself
  EXPECT_EQ(FolderLock::last_owner(scratch.path())->pid, owner);
  const FolderLock next(scratch.path());
  EXPECT_EQ(FolderLock::holder(scratch.path())->pid, getpid());
}

TEST(FolderLock, FollowsItsFolder) {
  const ScratchFolder scratch;
  std::filesystem::create_directory(scratch / "run");
  FolderLock lock(scratch / "run");
  std::filesystem::rename(scratch / "run", scratch / "moved");
  EXPECT_FALSE(lock.is_in_place());
  std::filesystem::create_directory(scratch / "run");
  EXPECT_FALSE(lock.is_in_place());
  const auto owner = lock.owner();
  lock.lock_again();
  EXPECT_TRUE(lock.is_in_place());
  EXPECT_EQ(lock.owner(), owner);
  EXPECT_EQ(FolderLock::holder(scratch / "run"), owner);
}

TEST(FolderLock, ByNameIsTakenFromADeadProcessAtOnce) {
  const ScratchFolder scratch;
  const pid_t ended = fork();
  if (ended == 0) _exit(0);
  waitpid(ended, nullptr, 0);
  const std::string system = system_of_this_process();
  const auto parent = getppid();
  put_held(scratch.path(), "here", parent, system, process_state(parent).started);
  EXPECT_EQ(FolderLock::holder(scratch.path())->pid, parent);
  EXPECT_THROW(FolderLock(scratch.path()), FolderLocked);
  // Neither an ended process nor a later one with its number holds the folder.
  for (const auto& [pid, started] : {std::pair(ended, 1), std::pair(parent, 1)}) {
    put_held(scratch.path(), "here", pid, system, started);
    EXPECT_FALSE(FolderLock::holder(scratch.path()));
    std::vector<std::string> said;
    const FolderLock lock(scratch.path(), [&](const std::string& text) { said.push_back(text); });
    ASSERT_EQ(said.size(), 1U);
    EXPECT_NE(said[0].find("taking over"), std::string::npos) << said[0];
    EXPECT_EQ(FolderLock::holder(scratch.path()), lock.owner());
  }
}

// Its owner was killed, or its disk full, before it could write who it is.
TEST(FolderLock, ByNameIsTakenFromNobody) {
  const ScratchFolder scratch;
  put(scratch / "lock.held", "");
  const FolderLock lock(scratch.path(), {}, std::chrono::milliseconds(50));
  EXPECT_EQ(FolderLock::holder(scratch.path()), lock.owner());
}

TEST(FolderLock, ByNameThatWasTakenOverHoldsNoMore) {
  const ScratchFolder scratch;
  put_held(scratch.path(), "elsewhere", 1, "another boot");
  FolderLock lock(scratch.path(), {}, std::chrono::milliseconds(50));
  EXPECT_TRUE(lock.is_in_place());
  put_held(scratch.path(), "elsewhere", 2, "another boot");
  EXPECT_FALSE(lock.is_in_place());
  EXPECT_THROW(lock.lock_again(), FolderLocked);
  EXPECT_FALSE(lock.is_in_place());
}

TEST(FolderLock, ByNameWaitsForASignOfLifeOfAnotherHost) {
  const ScratchFolder scratch;
  std::vector<std::string> said;
  put_held(scratch.path(), "elsewhere", 1, "another boot");
  {
    const FolderLock lock(
        scratch.path(), [&](const std::string& text) { said.push_back(text); },
        std::chrono::milliseconds(300));
    EXPECT_EQ(FolderLock::holder(scratch.path()), lock.owner());
  }
  ASSERT_EQ(said.size(), 2U);
  EXPECT_NE(said[0].find("host elsewhere, process 1"), std::string::npos) << said[0];
  EXPECT_NE(said[1].find("taking over"), std::string::npos) << said[1];
  EXPECT_FALSE(std::filesystem::exists(scratch / "lock.held"));

  put_held(scratch.path(), "elsewhere", 1, "another boot");
  const pid_t alive = fork();
  if (alive == 0) {
    for (;;) {
      usleep(20000);
      std::filesystem::last_write_time(scratch / "lock.held",
                                       std::filesystem::file_time_type::clock::now());
    }
  }
  EXPECT_THROW(FolderLock(scratch.path(), {}, std::chrono::seconds(20)), FolderLocked);
  end(alive);
}

}  // namespace
}  // namespace laterna::data
