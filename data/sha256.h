// SHA-256 of anything that comes in pieces. Data sets, shards and checkpoints are named by it;
// digests are 64 lower-case hexadecimal digits.
#pragma once

#include <cstddef>
#include <filesystem>
#include <memory>
#include <string>

namespace laterna::data {

/// A digest under way. Movable.
class Sha256 {
 public:
  Sha256();
  ~Sha256();
  Sha256(Sha256&&) noexcept;
  Sha256& operator=(Sha256&&) noexcept;

  void update(const void* bytes, std::size_t count);
  /// The digest of all that came; the object starts anew.
  std::string finish();

 private:
  struct Context;
  std::unique_ptr<Context> context_;
};

std::string sha256(const void* bytes, std::size_t count);
/// Reads the file once. Throws InputError when it cannot be read.
std::string sha256_of_file(const std::filesystem::path& path);

}  // namespace laterna::data
