// SHA-256 of data that may arrive in pieces. It identifies data sets, shards and checkpoints.
// Digests are strings of 64 lower-case hexadecimal digits.
#pragma once

#include <cstddef>
#include <filesystem>
#include <functional>
#include <memory>
#include <string>

namespace laterna::data {

/// Computes a digest incrementally; movable.
class Sha256 {
 public:
  Sha256();
  ~Sha256();
  Sha256(Sha256&&) noexcept;
  Sha256& operator=(Sha256&&) noexcept;

  void update(const void* bytes, std::size_t count);
  /// Returns the digest of all bytes since the start or the last finish(), and starts again.
  std::string finish();

 private:
  struct Context;
  std::unique_ptr<Context> context_;
};

std::string sha256(const void* bytes, std::size_t count);
/// Returns the digest of a file's bytes. Throws InputError when the file cannot be read. Calls
/// `progress` after each MiB.
std::string sha256_of_file(
    const std::filesystem::path& path, const std::function<void()>& progress = [] {});

}  // namespace laterna::data
