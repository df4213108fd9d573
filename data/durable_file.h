// What must survive a crash: write aside, fsync, rename, fsync the folder. A reader sees the old
// file or the whole new one, never a part. To commit several files, sync and rename each and write
// the one that says "complete" (a manifest, dataset.json) last.
//
// All throw WriteError naming the file and the system's reason.
#pragma once

#include <filesystem>
#include <string_view>

namespace laterna::data {

/// `path` holds `bytes`, durably; written to `path`.part first.
void write_file_durably(const std::filesystem::path& path, std::string_view bytes);

/// Whether `path` can be written shows before long work for it: makes `path`.part, and removes it.
void try_writing(const std::filesystem::path& path);

/// The file's content is on the disk.
void sync_file(const std::filesystem::path& path);

/// The folder's entries (creations, renames) are on the disk.
void sync_folder(const std::filesystem::path& folder);

/// The folder is there, and every one above it that had to be made, by name on the disk.
void make_folder_durably(const std::filesystem::path& folder);

/// Syncs the file `from`, renames it to `to` (replacing it) and syncs the folder. For a folder
/// `from`, sync what is in it first.
void rename_durably(const std::filesystem::path& from, const std::filesystem::path& to);

}  // namespace laterna::data
