#include "data/files/folder_lock.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <condition_variable>
#include <cstring>
#include <fstream>
#include <mutex>
#include <nlohmann/json.hpp>
#include <random>

#include "data/error.h"
#include "data/files/durable_file.h"
#include "data/host.h"

namespace laterna::data {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;
using Clock = std::chrono::steady_clock;

constexpr std::chrono::seconds kLifeInterval{10};

fs::path lock_file(const fs::path& folder) { return folder / "lock"; }
fs::path held_file(const fs::path& folder) { return folder / "lock.held"; }

[[noreturn]] void fail(const fs::path& path) {
  throw WriteError(fmt::format("{}: cannot be written: {}", path.string(), std::strerror(errno)));
}

std::int64_t new_id() {
  std::random_device random;
  return (std::int64_t{random()} << 31) | (random() & 0x7FFFFFFF);
}

/// Returns what tells this boot of this host, and this namespace of processes, from others.
std::string this_system() {
  std::string boot;
  std::ifstream("/proc/sys/kernel/random/boot_id") >> boot;
  std::error_code none;
  return boot + " " + fs::read_symlink("/proc/self/ns/pid", none).string();
}

/// Writes the owner to an open file, at once also for other hosts.
void write_owner(int file, const LockOwner& owner, const fs::path& path) {
  const std::string text = json{{"host", owner.host},
                                {"pid", owner.pid},
                                {"started", owner.started},
                                {"id", owner.id},
                                {"system", owner.system}}
                               .dump(-1, ' ', false, json::error_handler_t::replace) +
                           "\n";
  if (ftruncate(file, 0) != 0 ||
      pwrite(file, text.data(), text.size(), 0) != static_cast<ssize_t>(text.size()) ||
      fsync(file) != 0) {
    fail(path);
  }
}

std::optional<LockOwner> read_owner(const fs::path& path) {
  std::ifstream file(path);
  const json text = json::parse(file, nullptr, false);
  if (!text.is_object()) return {};
  try {
    return LockOwner{text.at("host"), text.at("pid"), text.at("started"), text.at("id"),
                     text.at("system")};
  } catch (const json::exception&) {  // not written by this program
    return {};
  }
}

/// Returns the owner in a file whose owner may be about to write it.
LockOwner read_owner_patiently(const fs::path& path) {
  for (int attempt = 0; attempt < 20; ++attempt) {
    if (auto owner = read_owner(path)) return *owner;
    std::this_thread::sleep_for(std::chrono::milliseconds(50));
  }
  return {.host = "unknown"};
}

struct flock whole_file() {
  struct flock lock {};
  lock.l_type = F_WRLCK;
  lock.l_whence = SEEK_SET;
  return lock;
}

/// Whether the open file `descriptor` is the one at `path`, and was not moved, removed or replaced.
bool is_at(int descriptor, const std::filesystem::path& path) {
  struct stat open {};
  struct stat there {};
  return ::fstat(descriptor, &open) == 0 && ::stat(path.c_str(), &there) == 0 &&
         open.st_dev == there.st_dev && open.st_ino == there.st_ino;
}

/// Whether the owner's process is known to have ended. False where it cannot be known.
bool is_dead(const LockOwner& owner) {
  if (owner.system != this_system()) return false;
  const auto process = process_state(owner.pid);
  return process.has_ended() || process.started != owner.started;
}

/// Returns what changes while the owner of lock.held lives: its content and its time.
std::string signs_of_life(const fs::path& held) {
  struct stat state {};
  if (stat(held.c_str(), &state) != 0) return "";
  const auto owner = read_owner(held);
  return fmt::format("{} {}.{}", owner ? owner->id : 0, state.st_mtim.tv_sec,
                     state.st_mtim.tv_nsec);
}

}  // namespace

std::string LockOwner::describe() const { return fmt::format("host {}, process {}", host, pid); }

FolderLock::FolderLock(fs::path folder, const Say& say, std::chrono::milliseconds patience)
    : folder_(std::move(folder)),
      owner_{host_name(), getpid(), process_state(getpid()).started, new_id(), this_system()} {
  lock(say, patience);
}

FolderLock::~FolderLock() { unlock(); }

void FolderLock::lock_again() {
  unlock();
  lock({}, std::chrono::milliseconds(0));
}

void FolderLock::lock(const Say& say, std::chrono::milliseconds patience) {
  const fs::path path = lock_file(folder_);
  try {
    bool locked = false;
    do {  // again when the owner before has removed the file that was opened here
      if (file_ >= 0) close(file_);
      file_ = open(path.c_str(), O_CREAT | O_RDWR | O_CLOEXEC, 0644);
      if (file_ < 0) fail(path);
      struct flock whole = whole_file();
      locked = fcntl(file_, F_OFD_SETLK, &whole) == 0;
      if (!locked && (errno == EAGAIN || errno == EACCES)) {
        throw FolderLocked(read_owner_patiently(path));
      }
    } while (!is_at(file_, path));
    if (const auto last = read_owner(path); last && locked && !is_dead(*last)) {
      tell(say,
           fmt::format("{} has not ended its work here; if it still runs, end it first, because "
                       "the file locks of this file system do not reach it",
                       last->describe()));
    }
    // Until the new owner is known, requests find none rather than the last one.
    if (locked && ftruncate(file_, 0) != 0) fail(path);
    if (!locked || fs::exists(held_file(folder_))) hold_by_name(say, patience);
    write_owner(file_, owner_, path);
  } catch (...) {
    unlock();
    throw;
  }
}

void FolderLock::tell(const Say& say, const std::string& text) const {
  if (say) say(fmt::format("{}: {}", folder_.string(), text));
}

/// Takes lock.held away from the owner that it names, or from none where that could not be written.
/// Renamed before it is removed: of two processes that take over, one gets the file.
void FolderLock::take_from(const std::optional<LockOwner>& dead) const {
  const fs::path held = held_file(folder_);
  if (read_owner(held) != dead) return;  // somebody was faster
  const fs::path taken = folder_ / fmt::format("lock.taken-{}", owner_.id);
  if (rename(held.c_str(), taken.c_str()) != 0) {
    if (errno == ENOENT) return;
    fail(held);
  }
  std::error_code none;
  if (read_owner(taken) != dead) {  // somebody was faster after all: give it back
    fs::rename(taken, held, none);
  } else {
    fs::remove(taken, none);
  }
}

void FolderLock::hold_by_name(const Say& say, std::chrono::milliseconds patience) {
  const fs::path held = held_file(folder_);
  auto watched_since = Clock::now();
  for (std::string signs;;) {
    const int file = open(held.c_str(), O_CREAT | O_EXCL | O_WRONLY | O_CLOEXEC, 0644);
    if (file >= 0) {
      by_name_ = true;  // before it is written: unlock() removes it
      write_owner(file, owner_, held);
      close(file);
      break;
    }
    if (errno != EEXIST) fail(held);
    const auto known = read_owner(held);
    const LockOwner other = known.value_or(LockOwner{.host = "unknown"});
    const bool dead = known && is_dead(other);
    if (!dead && (patience.count() == 0 || other.system == this_system())) {
      throw FolderLocked(other);
    }
    if (const auto now = signs_of_life(held); !dead && now != signs) {
      if (!signs.empty()) throw FolderLocked(other);
      signs = now;
      watched_since = Clock::now();
      tell(say, fmt::format("locked by {}; waiting {:g} s for a sign of life from it",
                            other.describe(), std::chrono::duration<double>(patience).count()));
    }
    if (dead || Clock::now() - watched_since >= patience) {
      tell(say, fmt::format("taking over the lock of {}, which has ended", other.describe()));
      take_from(known);
      signs.clear();
      continue;
    }
    std::this_thread::sleep_for(std::min<std::chrono::milliseconds>(
        std::chrono::milliseconds(500), patience / 4 + std::chrono::milliseconds(1)));
  }
  life_ = std::jthread([this](const std::stop_token& stop) { show_life(stop); });
}

void FolderLock::show_life(const std::stop_token& stop) const {
  std::mutex mutex;
  std::condition_variable_any wake;
  std::unique_lock lock(mutex);
  while (!wake.wait_for(lock, stop, kLifeInterval, [] { return false; }) &&
         !stop.stop_requested()) {
    const fs::path held = held_file(folder_);
    if (read_owner(held) == owner_) utimensat(AT_FDCWD, held.c_str(), nullptr, 0);
  }
}

void FolderLock::unlock() {
  if (file_ >= 0 && read_owner(lock_file(folder_)) == owner_) {
    [[maybe_unused]] const int failed = ftruncate(file_, 0);
  }
  if (by_name_) {
    if (life_.joinable()) {
      life_.request_stop();
      life_.join();
    }
    std::error_code none;
    const auto held = read_owner(held_file(folder_));
    if (!held || held == owner_) fs::remove(held_file(folder_), none);
    by_name_ = false;
  }
  if (file_ >= 0) close(file_);
  file_ = -1;
}

bool FolderLock::is_in_place() const {
  return file_ >= 0 && is_at(file_, lock_file(folder_)) &&
         (!by_name_ || read_owner(held_file(folder_)) == owner_);
}

std::optional<LockOwner> FolderLock::holder(const fs::path& folder) {
  if (fs::exists(held_file(folder))) {
    LockOwner owner = read_owner_patiently(held_file(folder));
    if (is_dead(owner)) return {};
    return owner;
  }
  const int file = open(lock_file(folder).c_str(), O_RDONLY | O_CLOEXEC);
  if (file < 0) return {};
  struct flock lock = whole_file();
  const bool held = fcntl(file, F_OFD_GETLK, &lock) == 0 && lock.l_type != F_UNLCK;
  close(file);
  if (!held) return {};
  return read_owner_patiently(lock_file(folder));
}

std::optional<LockOwner> FolderLock::last_owner(const fs::path& folder) {
  return read_owner(lock_file(folder));
}

}  // namespace laterna::data
