// Durable files on POSIX calls. The result of close() is checked too: some file systems (NFS)
// report a full disk only there.
#include "data/files/durable_file.h"

#include <fcntl.h>
#include <fmt/core.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstring>

#include "data/error.h"

namespace laterna::data {
namespace {

[[noreturn]] void fail(const std::filesystem::path& path, const char* what, int error) {
  const char* advice = error == ENOSPC || error == EDQUOT ? "; free some space and try again"
                       : error == EACCES || error == EROFS
                           ? "; choose a folder that you can write to"
                           : "";
  throw WriteError(fmt::format("{}: {}: {}{}", path.string(), what, std::strerror(error), advice));
}

// Owns a file descriptor; the destructor closes it.
class Descriptor {
 public:
  Descriptor(const std::filesystem::path& path, int flags, const char* what)
      : path_(path), value_(::open(path.c_str(), flags | O_CLOEXEC, 0666)) {
    if (value_ < 0) fail(path_, what, errno);
  }
  ~Descriptor() {
    if (value_ >= 0) ::close(value_);
  }
  Descriptor(const Descriptor&) = delete;
  Descriptor& operator=(const Descriptor&) = delete;

  void write(std::string_view bytes) {
    while (!bytes.empty()) {
      const ssize_t written = ::write(value_, bytes.data(), bytes.size());
      if (written < 0 && errno == EINTR) continue;
      if (written < 0) fail(path_, "cannot be written", errno);
      bytes.remove_prefix(static_cast<std::size_t>(written));
    }
  }
  void sync() {
    if (::fsync(value_) != 0) fail(path_, "cannot be synced to disk", errno);
  }
  void close() {
    const int status = ::close(value_);
    value_ = -1;
    if (status != 0) fail(path_, "cannot be written", errno);
  }

 private:
  const std::filesystem::path path_;
  int value_;
};

std::filesystem::path folder_of(const std::filesystem::path& path) {
  return path.has_parent_path() ? path.parent_path() : ".";
}

void put_in_place(const std::filesystem::path& from, const std::filesystem::path& to) {
  if (std::rename(from.c_str(), to.c_str()) != 0) fail(to, "cannot be renamed into place", errno);
}

}  // namespace

void write_file_durably(const std::filesystem::path& path, std::string_view bytes) {
  std::filesystem::path part = path;
  part += ".part";
  try {
    Descriptor file(part, O_WRONLY | O_CREAT | O_TRUNC, "cannot be created");
    file.write(bytes);
    file.sync();
    file.close();
    put_in_place(part, path);
  } catch (const WriteError&) {
    ::unlink(part.c_str());
    throw;
  }
  sync_folder(folder_of(path));
}

void try_writing(const std::filesystem::path& path) {
  const auto folder = folder_of(path);
  if (std::filesystem::is_directory(path)) {
    throw WriteError(path.string() + ": is a folder; give the name of a file");
  }
  if (!std::filesystem::is_directory(folder)) {
    throw WriteError(fmt::format("{}: the folder {} does not exist; create it or choose another",
                                 path.string(), folder.string()));
  }
  const std::filesystem::path aside = path.string() + ".part";
  { const Descriptor made(aside, O_CREAT | O_WRONLY, "cannot be written"); }
  std::filesystem::remove(aside);
}

void sync_file(const std::filesystem::path& path) {
  Descriptor file(path, O_RDONLY, "cannot be opened for syncing");
  file.sync();
}

void forget_cached(const std::filesystem::path& path) {
  const int file = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (file < 0) return;
  ::posix_fadvise(file, 0, 0, POSIX_FADV_DONTNEED);
  ::close(file);
}

void list_again(const std::filesystem::path& folder) {
  std::error_code none;
  for (std::filesystem::directory_iterator entry(folder, none), end; entry != end;) {
    entry.increment(none);
  }
}

void sync_folder(const std::filesystem::path& folder) {
  Descriptor entries(folder, O_RDONLY | O_DIRECTORY, "cannot be opened for syncing");
  entries.sync();
}

void make_folder_durably(const std::filesystem::path& folder) {
  if (std::filesystem::is_directory(folder)) return;
  const std::filesystem::path above = folder_of(folder);
  if (above != folder) make_folder_durably(above);
  if (::mkdir(folder.c_str(), 0777) != 0 && errno != EEXIST)
    fail(folder, "cannot be created", errno);
  sync_folder(above);
}

void rename_durably(const std::filesystem::path& from, const std::filesystem::path& to) {
  sync_file(from);
  put_in_place(from, to);
  sync_folder(folder_of(to));
}

}  // namespace laterna::data
