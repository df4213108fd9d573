// The lock of a folder that one program at a time may write: a run, or a data set that is being
// made. The system's file lock on FOLDER/lock decides where there is one; it ends with its process,
// whatever ends it. On file systems without locks the file FOLDER/lock.held decides, which only one
// process can create: it is taken over when its owner is seen to be dead or shows no sign of life.
//
// FOLDER/lock also says who the owner is: its host, its process, and a number that no other owner
// has, by which a request can be addressed to this owner and no later one.
#pragma once

#include <chrono>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <optional>
#include <stdexcept>
#include <string>
#include <thread>

namespace laterna::data {

/// The process that holds or last held a lock, as its lock file says.
struct LockOwner {
  std::string host;
  int pid = 0;
  std::int64_t started = 0;  // of the process, in clock ticks after the boot
  std::int64_t id = 0;       // random, that of no other owner
  std::string system;        // the host's boot and process namespace: where `pid` means something
  /// Returns "host NAME, process 123".
  std::string describe() const;
  bool operator==(const LockOwner&) const = default;
};

/// Thrown when another process holds the lock.
struct FolderLocked : std::runtime_error {
  explicit FolderLocked(const LockOwner& its_owner)
      : std::runtime_error("the folder is locked by " + its_owner.describe()), owner(its_owner) {}
  LockOwner owner;
};

class FolderLock {
 public:
  /// Called with a message for people when a lock must be waited for or is taken over.
  using Say = std::function<void(const std::string&)>;
  /// How long an owner on another host may show no sign of life, where there are no file locks.
  static constexpr std::chrono::seconds kPatience{60};

  /// Locks an existing folder, and waits up to `patience` for a sign of life of an owner that
  /// cannot be seen from here before it takes over; with 0 it takes over from dead owners only.
  /// Throws FolderLocked, or WriteError when its files cannot be written.
  explicit FolderLock(std::filesystem::path folder, const Say& say = {},
                      std::chrono::milliseconds patience = kPatience);
  /// Unlocks, and forgets the owner in FOLDER/lock.
  ~FolderLock();
  FolderLock(const FolderLock&) = delete;
  FolderLock& operator=(const FolderLock&) = delete;

  const LockOwner& owner() const { return owner_; }
  /// Locks the folder that is at the path now, for the same owner(), without waiting. Throws as the
  /// constructor does; then nothing is locked.
  void lock_again();
  /// Whether this lock still holds: false after the folder was moved or removed, or when another
  /// process has taken over.
  bool is_in_place() const;

  /// Returns the owner of a folder's lock if a process holds it, as far as can be seen from here:
  /// an owner by name on another host counts until it is taken over.
  static std::optional<LockOwner> holder(const std::filesystem::path& folder);
  /// Returns the owner named in FOLDER/lock, alive or killed; nothing after a normal end.
  static std::optional<LockOwner> last_owner(const std::filesystem::path& folder);

 private:
  void lock(const Say& say, std::chrono::milliseconds patience);
  void unlock();
  void tell(const Say& say, const std::string& text) const;
  void take_from(const std::optional<LockOwner>& dead) const;
  void hold_by_name(const Say& say, std::chrono::milliseconds patience);
  void show_life(const std::stop_token& stop) const;

  std::filesystem::path folder_;
  LockOwner owner_;
  int file_ = -1;
  bool by_name_ = false;
  std::jthread life_;  // where by_name_: touches FOLDER/lock.held
};

}  // namespace laterna::data
