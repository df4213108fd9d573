#include "dist/heartbeat.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <fstream>
#include <stdexcept>
#include <system_error>

#include "data/host.h"

namespace laterna::dist {
namespace {

constexpr char kMagic[8] = {'L', 'A', 'T', 'E', 'R', 'N', 'A', '2'};

template <std::size_t size>
void copy_text(char (&to)[size], const char* from) {
  std::strncpy(to, from, size - 1);
  to[size - 1] = '\0';
}

}  // namespace

std::string describe(const HeartbeatRecord& r) {
  std::string text = fmt::format("step {}, {}", r.step, r.operation);
  if (r.layer >= 0) text += fmt::format(" of layer {}", r.layer);
  if (r.peer >= 0) text += fmt::format(", waiting for rank {}", r.peer);
  if (r.peer == kSeveralPeers) text += ", waiting for the other ranks";
  return text;
}

// A reader that finds `version` odd, or changed during its copy, has raced with a write and reads
// again.
struct Heartbeat::Page {
  char magic[8];
  std::atomic<std::uint32_t> version;
  std::int32_t rank, pid, peer, ended;
  std::int64_t step, layer;
  double since;
  std::uint64_t progress;
  char host[64];
  char operation[64];
};
static_assert(std::atomic<std::uint32_t>::is_always_lock_free);

Heartbeat::~Heartbeat() {
  if (page_) munmap(page_, sizeof(Page));
}

void Heartbeat::open(const std::filesystem::path& path, int rank, const std::string& host) {
  const int file = ::open(path.c_str(), O_CREAT | O_TRUNC | O_RDWR | O_CLOEXEC, 0644);
  // Disk space is reserved first: a store into a mapped page without free space on disk raises
  // SIGBUS.
  int error = file < 0 ? errno : posix_fallocate(file, 0, sizeof(Page));
  void* memory = MAP_FAILED;
  if (error == 0) {
    memory = mmap(nullptr, sizeof(Page), PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    if (memory == MAP_FAILED) error = errno;
  }
  if (file >= 0) close(file);
  if (error != 0) {
    throw std::runtime_error(fmt::format("{}: cannot create the heartbeat file: {}", path.string(),
                                         std::generic_category().message(error)));
  }
  page_ = static_cast<Page*>(memory);
  write([&](Page& page) {
    page.rank = rank, page.pid = getpid(), page.peer = kNoPeer, page.ended = 0;
    page.step = 0, page.layer = layer_, page.since = data::unix_time(), page.progress = 0;
    copy_text(page.host, host.c_str());
    copy_text(page.operation, operation_);
  });
  std::memcpy(page_->magic, kMagic, sizeof(kMagic));
}

template <typename Change>
void Heartbeat::write(const Change& change) {
  if (!page_) return;
  page_->version.fetch_add(1, std::memory_order_acq_rel);
  change(*page_);
  page_->version.fetch_add(1, std::memory_order_release);
}

void Heartbeat::set(const char* operation, std::int64_t layer) {
  operation_ = operation;
  layer_ = layer;
  write([&](Page& page) {
    copy_text(page.operation, operation);
    page.layer = layer;
    page.since = data::unix_time();
    ++page.progress;
  });
}

Heartbeat::Scope::Scope(Heartbeat& heartbeat, const char* operation, std::int64_t layer)
    : heartbeat_(heartbeat),
      outer_operation_(heartbeat.operation_),
      outer_layer_(heartbeat.layer_) {
  heartbeat_.set(operation, layer);
}

// While an exception unwinds, the operation is kept: it tells where the rank failed.
Heartbeat::Scope::~Scope() {
  if (std::uncaught_exceptions() == 0) heartbeat_.set(outer_operation_, outer_layer_);
}

void Heartbeat::set_step(std::int64_t step) {
  write([&](Page& page) { page.step = step; });
}

void Heartbeat::touch() {
  write([](Page& page) {
    page.since = data::unix_time();
    ++page.progress;
  });
}

void Heartbeat::set_peer(int peer) {
  write([&](Page& page) { page.peer = peer; });
}

void Heartbeat::end() {
  write([&](Page& page) { page.ended = 1; });
}

std::optional<HeartbeatRecord> Heartbeat::read(const std::filesystem::path& path) {
  for (int attempt = 0; attempt < 100; ++attempt) {
    std::ifstream file(path, std::ios::binary);
    alignas(Page) char bytes[sizeof(Page)];
    if (!file.read(bytes, sizeof(bytes))) return {};
    std::uint32_t again = 0;  // the version, read after the copy
    file.clear();
    file.seekg(offsetof(Page, version));
    file.sync();
    if (!file.read(reinterpret_cast<char*>(&again), sizeof(again))) return {};
    const auto& page = *reinterpret_cast<const Page*>(bytes);
    if (std::memcmp(page.magic, kMagic, sizeof(kMagic)) != 0) return {};
    const std::uint32_t version = page.version.load(std::memory_order_relaxed);
    // A rank killed during a write leaves the version odd forever: the last attempt accepts it.
    if ((version % 2 != 0 || version != again) && attempt < 99) continue;
    HeartbeatRecord record{page.rank, page.pid,   {},        page.ended != 0, page.step,
                           {},        page.layer, page.peer, page.since,      page.progress};
    record.host.assign(page.host, strnlen(page.host, sizeof(page.host)));
    record.operation.assign(page.operation, strnlen(page.operation, sizeof(page.operation)));
    return record;
  }
  return {};
}

}  // namespace laterna::dist
