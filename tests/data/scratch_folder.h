// For the tests of data/: a temporary folder, small files, and a check of exception messages.
#pragma once

#include <gtest/gtest.h>
#include <stdlib.h>

#include <filesystem>
#include <fstream>
#include <iterator>
#include <string>

namespace laterna::data {

class ScratchFolder {
 public:
  ScratchFolder() {
    std::string name = (std::filesystem::temp_directory_path() / "laterna-XXXXXX").string();
    if (mkdtemp(name.data()) == nullptr) throw std::runtime_error("cannot create a scratch folder");
    path_ = name;
  }
  ~ScratchFolder() { std::filesystem::remove_all(path_); }
  ScratchFolder(const ScratchFolder&) = delete;
  ScratchFolder& operator=(const ScratchFolder&) = delete;
  std::filesystem::path operator/(const std::string& name) const { return path_ / name; }
  const std::filesystem::path& path() const { return path_; }

 private:
  std::filesystem::path path_;
};

inline void put(const std::filesystem::path& path, const std::string& bytes) {
  std::filesystem::create_directories(path.parent_path());
  std::ofstream(path, std::ios::binary) << bytes;
}

inline std::string get(const std::filesystem::path& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

/// Copies the first `bytes` bytes of `from` to `to`.
inline void put_cut(const std::filesystem::path& from, const std::filesystem::path& to,
                    std::size_t bytes) {
  put(to, get(from).substr(0, bytes));
}

/// Runs `action`, which must throw Error with all `parts` in its message.
template <typename Error, typename Action>
void expect_error(Action action, std::initializer_list<std::string> parts) {
  try {
    action();
  } catch (const Error& error) {
    for (const std::string& part : parts) {
      EXPECT_NE(std::string(error.what()).find(part), std::string::npos)
          << "'" << part << "' is not in: " << error.what();
    }
    return;
  } catch (const std::exception& other) {
    FAIL() << "another type of exception: " << other.what();
  }
  FAIL() << "nothing was thrown";
}

/// Makes every write to `path` fail as on a full disk, by a link to /dev/full.
inline void make_full(const std::filesystem::path& path) {
  std::filesystem::create_symlink("/dev/full", path);
}

}  // namespace laterna::data
