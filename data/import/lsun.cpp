// LSUN is an LMDB environment whose values are encoded images (WebP; JPEG in older copies). A
// cursor walks it in key order, which is the same everywhere; only the current image is in memory.
#include <fmt/core.h>
#include <lmdb.h>

#include <algorithm>
#include <memory>

#include "data/error.h"
#include "data/image_set.h"
#include "data/import/import.h"
#include "data/pictures/image_file.h"

namespace laterna::data {
namespace {

// A read-only environment with one transaction and one cursor.
class LmdbReader {
 public:
  explicit LmdbReader(const std::filesystem::path& folder) : folder_(folder) {
    if (!std::filesystem::exists(folder / "data.mdb")) {
      fail("no data.mdb in it; give the unpacked LMDB folder (bedroom_train_lmdb)");
    }
    MDB_env* environment = nullptr;
    check(mdb_env_create(&environment));
    environment_.reset(environment);
    // No lock file: the folder may be read-only, and no process writes to it.
    check(mdb_env_open(environment, folder.c_str(), MDB_RDONLY | MDB_NOLOCK, 0));
    check_size();
    MDB_txn* transaction = nullptr;
    check(mdb_txn_begin(environment, nullptr, MDB_RDONLY, &transaction));
    transaction_.reset(transaction);
    check(mdb_dbi_open(transaction, nullptr, 0, &table_));
    MDB_cursor* cursor = nullptr;
    check(mdb_cursor_open(transaction, table_, &cursor));
    cursor_.reset(cursor);
  }

  std::int64_t count() const {
    MDB_stat stat;
    check(mdb_stat(transaction_.get(), table_, &stat));
    return static_cast<std::int64_t>(stat.ms_entries);
  }

  /// Decodes the image of the next entry.
  Image next() {
    MDB_val key, value;
    check(mdb_cursor_get(cursor_.get(), &key, &value, MDB_NEXT));
    const std::string name(static_cast<const char*>(key.mv_data), key.mv_size);
    return decode_image({static_cast<const std::uint8_t*>(value.mv_data), value.mv_size},
                        fmt::format("{}: entry '{}'", folder_.string(), name));
  }

 private:
  /// LMDB maps the file: reading what was cut off would kill the process (SIGBUS).
  void check_size() const {
    MDB_envinfo info;
    MDB_stat stat;
    check(mdb_env_info(environment_.get(), &info));
    check(mdb_env_stat(environment_.get(), &stat));
    const auto needed = (std::uintmax_t{info.me_last_pgno} + 1) * stat.ms_psize;
    const auto bytes = std::filesystem::file_size(folder_ / "data.mdb");
    if (bytes < needed) {
      fail(fmt::format("data.mdb is cut short: it has {} bytes of {}; unpack or copy it again",
                       bytes, needed));
    }
  }
  [[noreturn]] void fail(const std::string& what) const {
    throw InputError(fmt::format("{}: {}", folder_.string(), what));
  }
  void check(int status) const {
    if (status != MDB_SUCCESS) {
      fail(fmt::format("cannot be read as LMDB: {}; unpack it again", mdb_strerror(status)));
    }
  }

  std::filesystem::path folder_;
  // Closed in reverse order (cursor, transaction, environment), also when the constructor throws.
  std::unique_ptr<MDB_env, void (*)(MDB_env*)> environment_{nullptr, mdb_env_close};
  std::unique_ptr<MDB_txn, void (*)(MDB_txn*)> transaction_{nullptr, mdb_txn_abort};
  MDB_dbi table_ = 0;
  std::unique_ptr<MDB_cursor, void (*)(MDB_cursor*)> cursor_{nullptr, mdb_cursor_close};
};

}  // namespace

void import_lsun(const ImportOptions& options, const Progress& progress) {
  LmdbReader reader(options.source);
  const int size = options.size ? options.size : 64;
  std::int64_t total = reader.count();
  if (options.limit > 0) total = std::min(total, options.limit);
  ImageSetWriter writer(options.output, {.name = options.name.empty() ? "lsun" : options.name,
                                         .split = options.split,
                                         .channels = 3,
                                         .height = size,
                                         .width = size,
                                         .labels = false});
  for (std::int64_t i = 0; i < total; ++i) {
    const Image image = to_channels(reader.next(), 3);
    const int side = std::min(image.height, image.width);
    writer.add(resize(centre_crop(image, side, side), size, size).pixels.data());
    if (progress && (i + 1) % 1000 == 0) progress(i + 1, total);
  }
  writer.finish();
  if (progress) progress(total, total);
}

}  // namespace laterna::data
