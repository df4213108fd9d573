// SHA-256 by OpenSSL's EVP interface, which uses the CPU's SHA instructions where there are any.
#include "data/files/sha256.h"

#include <fmt/core.h>
#include <openssl/evp.h>

#include <array>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <vector>

#include "data/error.h"

namespace laterna::data {

struct Sha256::Context {
  EVP_MD_CTX* evp = EVP_MD_CTX_new();
  ~Context() { EVP_MD_CTX_free(evp); }
};

namespace {

void check(int status) {
  if (status != 1) throw std::runtime_error("OpenSSL cannot compute SHA-256");
}

}  // namespace

Sha256::Sha256() : context_(std::make_unique<Context>()) {
  check(EVP_DigestInit_ex(context_->evp, EVP_sha256(), nullptr));
}
Sha256::~Sha256() = default;
Sha256::Sha256(Sha256&&) noexcept = default;
Sha256& Sha256::operator=(Sha256&&) noexcept = default;

void Sha256::update(const void* bytes, std::size_t count) {
  check(EVP_DigestUpdate(context_->evp, bytes, count));
}

std::string Sha256::finish() {
  std::array<unsigned char, EVP_MAX_MD_SIZE> digest;
  unsigned int length = 0;
  check(EVP_DigestFinal_ex(context_->evp, digest.data(), &length));
  check(EVP_DigestInit_ex(context_->evp, EVP_sha256(), nullptr));
  std::string hex;
  for (unsigned int i = 0; i < length; ++i) hex += fmt::format("{:02x}", digest[i]);
  return hex;
}

std::string sha256(const void* bytes, std::size_t count) {
  Sha256 digest;
  digest.update(bytes, count);
  return digest.finish();
}

std::string sha256_of_file(const std::filesystem::path& path,
                           const std::function<void()>& progress) {
  const std::unique_ptr<std::FILE, int (*)(std::FILE*)> file(std::fopen(path.c_str(), "rb"),
                                                             std::fclose);
  const auto fail = [&path] {
    throw InputError(fmt::format("{}: cannot be read: {}", path.string(), std::strerror(errno)));
  };
  if (!file) fail();
  Sha256 digest;
  std::vector<char> buffer(std::size_t{1} << 20);
  while (const std::size_t got = std::fread(buffer.data(), 1, buffer.size(), file.get())) {
    digest.update(buffer.data(), got);
    progress();
  }
  if (std::ferror(file.get())) fail();
  return digest.finish();
}

}  // namespace laterna::data
