// Files that survive a crash: write to `path`.part, fsync, rename, fsync the folder. A reader sees
// the old file or the complete new one, never a part of it. To commit several files, sync and
// rename each, and write the one that marks completion (a manifest, dataset.json) last.
//
// All functions throw WriteError with the file's name and the system's reason.
#pragma once

#include <filesystem>
#include <string_view>

namespace laterna::data {

/// Writes `bytes` to `path` durably, by way of `path`.part.
void write_file_durably(const std::filesystem::path& path, std::string_view bytes);

/// Checks that `path` can be written, before long work whose result goes there: creates `path`.part
/// and removes it.
void try_writing(const std::filesystem::path& path);

/// Syncs the content of a file to disk.
void sync_file(const std::filesystem::path& path);

/// Makes the kernel forget the cached content of a synced file, so that it is next read from the
/// disk. Where it cannot, nothing happens.
void forget_cached(const std::filesystem::path& path);

/// Lists the folder, which makes a network file system forget that a file was not there.
void list_again(const std::filesystem::path& folder);

/// Syncs the entries of a folder (creations, renames) to disk.
void sync_folder(const std::filesystem::path& folder);

/// Creates the folder and its missing parents, and syncs each new entry to disk.
void make_folder_durably(const std::filesystem::path& folder);

/// Syncs the file `from`, renames it to `to` (replacing any old `to`) and syncs the folder of `to`.
/// If `from` is a folder, the caller syncs its contents first.
void rename_durably(const std::filesystem::path& from, const std::filesystem::path& to);

}  // namespace laterna::data
