// A faulty disk for tests: an LD_PRELOAD library that intercepts the C library's file calls on
// paths in LATERNA_FAULT_FOLDER (an absolute path without symbolic links), lets chosen calls fail,
// and records all of them in a journal.
//   LATERNA_FAULT=KIND:N      the N-th call (from 1) that KIND concerns fails as described below
//   LATERNA_FAULT_RANK=R      only in rank R under mpirun; by default in every process, each with
//                             its own count
//   LATERNA_FAULT_JOURNAL=F   appends each call with the data that it wrote to the existing file F
//                             as it ends; several ranks may share F, from which disk.py finds out
//                             what a power cut leaves on the disk
// Calls are serialised, with a journal also across ranks, so that it has their order. KIND:
//   short-write     half of the data is written, and the next write fails with ENOSPC
//   no-space        the N-th write and all later ones fail with ENOSPC
//   sync-fails      fsync or fdatasync fails with EIO
//   close-fails     the file is closed, but close fails with EIO, as on network file systems
//   rename-missing  rename reports success but does nothing; the process is killed at its next call
//   power-cut       all ranks are killed at the N-th call of any kind, before it is made
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

// CALLS in disk.py has the same order.
enum Call { kOpen, kWrite, kTruncate, kSync, kClose, kRename, kUnlink, kMakeFolder, kCalls };
enum Fate { kOutside, kGood, kHalf, kFails, kSkipped };

static struct {
  const char *folder, *fault;
  long at;
  int rank, journal, struck_rank;
} settings;
static pthread_once_t once = PTHREAD_ONCE_INIT;
static pthread_mutex_t one_at_a_time = PTHREAD_MUTEX_INITIALIZER;
static long calls[kCalls], all_calls;
static int dies_next;

static void read_settings(void) {
  const char* rank = getenv("OMPI_COMM_WORLD_RANK");
  const char* victim = getenv("LATERNA_FAULT_RANK");
  const char* journal = getenv("LATERNA_FAULT_JOURNAL");
  char* fault = getenv("LATERNA_FAULT");
  settings.folder = getenv("LATERNA_FAULT_FOLDER");
  settings.rank = rank ? atoi(rank) : 0;
  settings.struck_rank = !victim || atoi(victim) == settings.rank;
  settings.journal =
      journal ? (int)syscall(SYS_openat, AT_FDCWD, journal, O_WRONLY | O_APPEND | O_CLOEXEC) : -1;
  if (fault && strchr(fault, ':')) {
    const char* colon = strchr(fault, ':');
    settings.at = atol(colon + 1);
    settings.fault = strndup(fault, (size_t)(colon - fault));
  }
}

// Sets `path` to the absolute path of `name` relative to the folder `fd`, or, if `name` is null, to
// the path of `fd` itself; returns `path`.
static const char* path_of(int fd, const char* name, char* path) {
  const int saved = errno;
  char link[64];
  ssize_t length = 0;
  if (!name || name[0] != '/') {
    snprintf(link, sizeof link, fd == AT_FDCWD ? "/proc/self/cwd" : "/proc/self/fd/%d", fd);
    length = readlink(link, path, PATH_MAX - 1);
    if (length < 0) length = 0;
  }
  path[length] = '\0';
  if (name) snprintf(path + length, (size_t)(PATH_MAX - length), length ? "/%s" : "%s", name);
  errno = saved;
  return path;
}

static void report(const char* path) {
  char line[PATH_MAX + 64];
  const int length = snprintf(line, sizeof line, "fault: %s: %s\n", settings.fault, path);
  syscall(SYS_write, STDERR_FILENO, line, (size_t)length);
}

// Kills this process and, under mpirun, its siblings: the other ranks on this host.
static void kill_all_ranks(void) {
  char list[64];
  snprintf(list, sizeof list, "/proc/%d/task/%d/children", getppid(), getppid());
  FILE* siblings = getenv("OMPI_COMM_WORLD_RANK") ? fopen(list, "r") : NULL;
  for (int pid; siblings && fscanf(siblings, "%d", &pid) == 1;) {
    if (pid != getpid()) kill(pid, SIGKILL);
  }
  kill(getpid(), SIGKILL);
}

static enum Fate fate_of(enum Call call) {
  const char* fault = settings.fault ? settings.fault : "";
  const int now = calls[call] == settings.at;
  if (call == kWrite) {
    if (!strcmp(fault, "short-write") && now) return kHalf;
    if (!strcmp(fault, "short-write") && calls[call] == settings.at + 1) return kFails;
    if (!strcmp(fault, "no-space") && calls[call] >= settings.at) return kFails;
  }
  if (call == kSync && !strcmp(fault, "sync-fails") && now) return kFails;
  if (call == kClose && !strcmp(fault, "close-fails") && now) return kFails;
  if (call == kRename && !strcmp(fault, "rename-missing") && now) return kSkipped;
  return kGood;
}

// Returns whether and how the call is to be made. Takes the lock, which end() must release, unless
// it returns kOutside.
static enum Fate begin(enum Call call, const char* path) {
  pthread_once(&once, read_settings);
  const size_t length = settings.folder ? strlen(settings.folder) : 0;
  if (!length || strncmp(path, settings.folder, length) != 0) return kOutside;
  if (path[length] != '/' && path[length] != '\0') return kOutside;
  pthread_mutex_lock(&one_at_a_time);
  if (settings.journal >= 0) flock(settings.journal, LOCK_EX);  // makes other ranks wait, too
  if (!settings.struck_rank) return kGood;
  ++calls[call];
  ++all_calls;
  if (dies_next) kill(getpid(), SIGKILL);
  if (settings.fault && !strcmp(settings.fault, "power-cut") && all_calls == settings.at) {
    report(path);
    kill_all_ranks();
  }
  const enum Fate fate = fate_of(call);
  if (fate == kSkipped) dies_next = 1;
  if (fate != kGood) report(path);
  return fate;
}

struct Record {
  int32_t call, rank;
  int64_t result, place;  // place: offset of a write, new length of a truncate, O_TRUNC of an open
  int32_t path, other, data,
      pad;  // bytes that follow: the path, the new path of a rename, the data of a write
};

static void end(enum Call call, int64_t result, int64_t place, const char* path, const char* other,
                const struct iovec* parts, int count) {
  const int saved = errno;
  struct iovec all[3 + 16] = {{0}};
  struct Record record = {
      call, settings.rank, result, place, (int32_t)strlen(path), (int32_t)strlen(other), 0, 0};
  int used = 3;
  for (int i = 0; i < count && i < 16 && record.data < result; ++i) {
    const int64_t left = result - record.data;
    all[used] = parts[i];
    if ((int64_t)all[used].iov_len > left) all[used].iov_len = (size_t)left;
    record.data += (int32_t)all[used++].iov_len;
  }
  all[0] = (struct iovec){&record, sizeof record};
  all[1] = (struct iovec){(void*)path, (size_t)record.path};
  all[2] = (struct iovec){(void*)other, (size_t)record.other};
  if (settings.journal >= 0) {
    syscall(SYS_writev, settings.journal, all, used);
    flock(settings.journal, LOCK_UN);
  }
  pthread_mutex_unlock(&one_at_a_time);
  errno = saved;
}

static int64_t fail(int error) {
  errno = error;
  return -1;
}

// --- The intercepted calls; an offset of -1 means the current position of the file ---------------

static ssize_t put(int fd, const struct iovec* parts, int count, off_t offset) {
  char path[PATH_MAX];
  const enum Fate fate = begin(kWrite, path_of(fd, NULL, path));
  const struct iovec half = {count ? parts[0].iov_base : NULL, count ? parts[0].iov_len / 2 : 0};
  if (fate == kHalf) parts = &half, count = 1;
  const ssize_t done = fate == kFails ? fail(ENOSPC)
                       : offset < 0   ? syscall(SYS_writev, fd, parts, count)
                                      : syscall(SYS_pwritev, fd, parts, count, offset, 0);
  if (fate == kOutside) return done;
  if (offset < 0 && done >= 0) offset = lseek(fd, 0, SEEK_CUR) - done;
  end(kWrite, done, offset, path, "", parts, count);
  return done;
}

ssize_t write(int fd, const void* bytes, size_t count) {
  const struct iovec part = {(void*)bytes, count};
  return put(fd, &part, 1, -1);
}

ssize_t writev(int fd, const struct iovec* parts, int count) { return put(fd, parts, count, -1); }

ssize_t pwrite(int fd, const void* bytes, size_t count, off_t offset) {
  const struct iovec part = {(void*)bytes, count};
  return put(fd, &part, 1, offset);
}

static int open_in(int folder, const char* name, int flags, mode_t mode) {
  char path[PATH_MAX];
  const enum Fate fate =
      flags & (O_CREAT | O_TRUNC) ? begin(kOpen, path_of(folder, name, path)) : kOutside;
  const int file = (int)syscall(SYS_openat, folder, name, flags, mode);
  if (fate != kOutside) end(kOpen, file, flags & O_TRUNC, path, "", NULL, 0);
  return file;
}

static mode_t mode_in(int flags, va_list more) {
  return flags & O_CREAT ? va_arg(more, mode_t) : 0;
}

int openat(int folder, const char* name, int flags, ...) {
  va_list more;
  va_start(more, flags);
  const mode_t mode = mode_in(flags, more);
  va_end(more);
  return open_in(folder, name, flags, mode);
}

int open(const char* name, int flags, ...) {
  va_list more;
  va_start(more, flags);
  const mode_t mode = mode_in(flags, more);
  va_end(more);
  return open_in(AT_FDCWD, name, flags, mode);
}

int creat(const char* name, mode_t mode) {
  return open_in(AT_FDCWD, name, O_CREAT | O_WRONLY | O_TRUNC, mode);
}

int ftruncate(int fd, off_t length) {
  char path[PATH_MAX];
  const enum Fate fate = begin(kTruncate, path_of(fd, NULL, path));
  const int done = (int)syscall(SYS_ftruncate, fd, length);
  if (fate != kOutside) end(kTruncate, done, length, path, "", NULL, 0);
  return done;
}

static int sync_by(long number, int fd) {
  char path[PATH_MAX];
  const enum Fate fate = begin(kSync, path_of(fd, NULL, path));
  const int done = (int)(fate == kFails ? fail(EIO) : syscall(number, fd));
  if (fate != kOutside) end(kSync, done, 0, path, "", NULL, 0);
  return done;
}

int fsync(int fd) { return sync_by(SYS_fsync, fd); }
int fdatasync(int fd) { return sync_by(SYS_fdatasync, fd); }

int close(int fd) {
  char path[PATH_MAX];
  const enum Fate fate = begin(kClose, path_of(fd, NULL, path));
  int done = (int)syscall(SYS_close, fd);
  if (fate == kFails) done = (int)fail(EIO);
  if (fate != kOutside) end(kClose, done, 0, path, "", NULL, 0);
  return done;
}

int renameat(int from_folder, const char* from, int to_folder, const char* to) {
  char path[PATH_MAX], other[PATH_MAX];
  path_of(to_folder, to, other);
  const enum Fate fate = begin(kRename, path_of(from_folder, from, path));
  const int done =
      (int)(fate == kSkipped ? 0 : syscall(SYS_renameat2, from_folder, from, to_folder, to, 0));
  if (fate != kOutside) end(kRename, fate == kSkipped ? -1 : done, 0, path, other, NULL, 0);
  return done;
}

int rename(const char* from, const char* to) { return renameat(AT_FDCWD, from, AT_FDCWD, to); }

int unlinkat(int folder, const char* name, int flags) {
  char path[PATH_MAX];
  const enum Fate fate = begin(kUnlink, path_of(folder, name, path));
  const int done = (int)syscall(SYS_unlinkat, folder, name, flags);
  if (fate != kOutside) end(kUnlink, done, 0, path, "", NULL, 0);
  return done;
}

int unlink(const char* name) { return unlinkat(AT_FDCWD, name, 0); }
int rmdir(const char* name) { return unlinkat(AT_FDCWD, name, AT_REMOVEDIR); }

int remove(const char* name) {
  const int done = unlink(name);
  return done != 0 && errno == EISDIR ? rmdir(name) : done;
}

int mkdir(const char* name, mode_t mode) {
  char path[PATH_MAX];
  const enum Fate fate = begin(kMakeFolder, path_of(AT_FDCWD, name, path));
  const int done = (int)syscall(SYS_mkdirat, AT_FDCWD, name, mode);
  if (fate != kOutside) end(kMakeFolder, done, 0, path, "", NULL, 0);
  return done;
}

ssize_t pwrite64(int, const void*, size_t, off64_t) __attribute__((alias("pwrite")));
int ftruncate64(int, off64_t) __attribute__((alias("ftruncate")));
int open64(const char*, int, ...) __attribute__((alias("open")));
int openat64(int, const char*, int, ...) __attribute__((alias("openat")));
int creat64(const char*, mode_t) __attribute__((alias("creat")));
