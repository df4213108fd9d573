#include "data/files/folder_lock.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <signal.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <condition_variable>
#include <cstring>
#include <fstream>
#include <mutex>
#include <nlohmann/json.hpp>
#include <random>

#include "data/error.h"
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

void write_owner(int file, const LockOwner& owner, const fs::path& path) {
  const std::string text =
      json{{"host", owner.host}, {"pid", owner.pid}, {"id", owner.id}, {"system", owner.system}}
          .dump(-1, ' ', false, json::error_handler_t::replace) +
      "\n";
  if (ftruncate(file, 0) != 0 ||
      pwrite(file, text.data(), text.size(), 0) != static_cast<ssize_t>(text.size())) {
    fail(path);
  }
}

std::optional<LockOwner> read_owner(const fs::path& path) {
  std::ifstream file(path);
  const json text = json::parse(file, nullptr, false);
  if (!text.is_object()) return {};
  return LockOwner{text.value("host", ""), text.value("pid", 0), text.value("id", std::int64_t{0}),
                   text.value("system", "")};
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

/// Whether the owner's process is known to have ended. False where it cannot be known.
bool is_dead(const LockOwner& owner) {
  return owner.system == this_system() && kill(owner.pid, 0) != 0 && errno == ESRCH;
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
    : folder_(std::move(folder)), owner_{host_name(), getpid(), new_id(), this_system()} {
  lock(say, patience);
}

FolderLock::~FolderLock() { unlock(); }

void FolderLock::lock_again() {
  unlock();
  lock({}, kPatience);
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
    } while (!is_in_place());
    if (!locked || fs::exists(held_file(folder_))) hold_by_name(say, patience);
    write_owner(file_, owner_, path);
  } catch (...) {
    if (file_ >= 0) close(file_);
    file_ = -1;
    throw;
  }
}

void FolderLock::hold_by_name(const Say& say, std::chrono::milliseconds patience) {
  const fs::path held = held_file(folder_);
  const auto tell = [&](const std::string& text) {
    if (say) say(fmt::format("{}: {}", folder_.string(), text));
  };
  auto watched_since = Clock::now();
  for (std::string signs;;) {
    const int file = open(held.c_str(), O_CREAT | O_EXCL | O_WRONLY | O_CLOEXEC, 0644);
    if (file >= 0) {
      write_owner(file, owner_, held);
      close(file);
      break;
    }
    if (errno != EEXIST) fail(held);
    const LockOwner other = read_owner_patiently(held);
    const bool dead = is_dead(other);
    if (!dead && other.system == this_system()) throw FolderLocked(other);
    if (const auto now = signs_of_life(held); !dead && now != signs) {
      if (!signs.empty()) throw FolderLocked(other);
      signs = now;
      watched_since = Clock::now();
      tell(fmt::format("locked by {}; waiting {:g} s for a sign of life from it", other.describe(),
                       std::chrono::duration<double>(patience).count()));
    }
    if (dead || Clock::now() - watched_since >= patience) {
      tell(fmt::format("taking over the lock of {}, which has ended", other.describe()));
      // Renamed before it is removed: of two processes that take over, one gets the file.
      const fs::path taken = folder_ / fmt::format("lock.taken-{}", owner_.id);
      std::error_code lost;
      fs::rename(held, taken, lost);
      if (!lost) {
        const bool was_the_dead_one = read_owner(taken) == other;
        if (!was_the_dead_one) fs::create_hard_link(taken, held, lost);  // somebody was faster
        fs::remove(taken, lost);
      }
      continue;
    }
    std::this_thread::sleep_for(std::min<std::chrono::milliseconds>(
        std::chrono::milliseconds(500), patience / 4 + std::chrono::milliseconds(1)));
  }
  by_name_ = true;
  life_ = std::jthread([this](const std::stop_token& stop) { show_life(stop); });
}

void FolderLock::show_life(const std::stop_token& stop) const {
  std::mutex mutex;
  std::condition_variable_any wake;
  std::unique_lock lock(mutex);
  while (!wake.wait_for(lock, stop, kLifeInterval, [] { return false; }) &&
         !stop.stop_requested()) {
    utimensat(AT_FDCWD, held_file(folder_).c_str(), nullptr, 0);
  }
}

void FolderLock::unlock() {
  if (by_name_) {
    life_.request_stop();
    life_.join();
    std::error_code none;
    if (read_owner(held_file(folder_)) == owner_) fs::remove(held_file(folder_), none);
    by_name_ = false;
  }
  if (file_ < 0) return;
  [[maybe_unused]] const int failed = ftruncate(file_, 0);
  close(file_);
  file_ = -1;
}

bool FolderLock::is_in_place() const {
  struct stat here {
  }, locked{};
  return file_ >= 0 && fstat(file_, &locked) == 0 && stat(lock_file(folder_).c_str(), &here) == 0 &&
         here.st_dev == locked.st_dev && here.st_ino == locked.st_ino;
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
