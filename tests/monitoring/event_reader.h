// Reader of event files, independent of the code that writes them: framing, bitwise checksums, and
// protocol buffers field by field.
#pragma once

#include <gtest/gtest.h>

#include <cstdint>
#include <cstring>
#include <filesystem>
#include <map>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

#include "tests/data/scratch_folder.h"

namespace laterna::monitoring {

template <typename T>
T plain(std::string_view bytes, std::size_t at) {
  if (at + sizeof(T) > bytes.size()) throw std::runtime_error("ends early");
  T value;
  std::memcpy(&value, bytes.data() + at, sizeof value);
  return value;
}

inline std::uint32_t bitwise_crc(std::string_view bytes) {
  std::uint32_t crc = 0xffffffff;
  for (const char byte : bytes) {
    for (int bit = 0; bit < 8; ++bit) {
      const bool low = ((crc ^ static_cast<unsigned char>(byte) >> bit) & 1) != 0;
      crc = (crc >> 1) ^ (low ? 0x82f63b78 : 0);
    }
  }
  return crc ^ 0xffffffff;
}

inline std::uint32_t unmasked(std::uint32_t masked) {
  const std::uint32_t rotated = masked - 0xa282ead8;
  return rotated >> 17 | rotated << 15;
}

// Fields of a message: varints as integers, all others as bytes.
struct Message {
  std::multimap<int, std::int64_t> numbers;
  std::multimap<int, std::string> bytes;

  explicit Message(std::string_view text) {
    std::size_t at = 0;
    const auto varint = [&] {
      std::uint64_t value = 0;
      for (int shift = 0;; shift += 7) {
        const auto byte = plain<std::uint8_t>(text, at++);
        value |= std::uint64_t{byte & 0x7fU} << shift;
        if (byte < 0x80) return value;
      }
    };
    while (at < text.size()) {
      const std::uint64_t key = varint();
      const int field = static_cast<int>(key >> 3);
      if ((key & 7) == 0) {
        numbers.emplace(field, static_cast<std::int64_t>(varint()));
        continue;
      }
      const std::size_t size = (key & 7) == 2 ? varint() : (key & 7) == 1 ? 8 : 4;
      if (at + size > text.size()) throw std::runtime_error("a field ends early");
      bytes.emplace(field, text.substr(at, size));
      at += size;
    }
  }
  std::int64_t number(int field) const { return numbers.find(field)->second; }
  const std::string& text(int field) const { return bytes.find(field)->second; }
};

struct Picture {
  std::int64_t step, height, width, colorspace;
  std::string png;
};

struct Content {
  std::size_t records = 0;
  std::vector<std::string> versions;  // of the first record only
  std::vector<std::int64_t> starts;
  std::vector<double> times;
  std::map<std::string, std::map<std::int64_t, float>> scalars;  // by tag and step
  std::map<std::string, Picture> pictures;
};

inline void take_summary(Content& content, std::int64_t step, const Message& summary) {
  for (const auto& [field, bytes] : summary.bytes) {
    const Message value(bytes);
    if (value.bytes.contains(2)) {
      content.scalars[value.text(1)][step] = plain<float>(value.text(2), 0);
    } else {
      const Message image(value.text(4));
      content.pictures[value.text(1)] = {step, image.number(1), image.number(2), image.number(3),
                                         image.text(4)};
    }
  }
}

inline Content read_events(const std::filesystem::path& path) {
  const std::string file = data::get(path);
  Content content;
  for (std::size_t at = 0; at < file.size();) {
    const auto length = plain<std::uint64_t>(file, at);
    EXPECT_EQ(unmasked(plain<std::uint32_t>(file, at + 8)), bitwise_crc(file.substr(at, 8)));
    const std::string body = file.substr(at + 12, length);
    EXPECT_EQ(unmasked(plain<std::uint32_t>(file, at + 12 + length)), bitwise_crc(body));
    at += length + 16;
    const Message event(body);
    content.times.push_back(plain<double>(event.text(1), 0));
    if (event.bytes.contains(3) && content.records == 0) content.versions.push_back(event.text(3));
    if (event.bytes.contains(7)) {
      EXPECT_EQ(Message(event.text(7)).number(1), 1);
      content.starts.push_back(event.number(2));
    }
    if (event.bytes.contains(5)) take_summary(content, event.number(2), Message(event.text(5)));
    ++content.records;
  }
  return content;
}

}  // namespace laterna::monitoring
