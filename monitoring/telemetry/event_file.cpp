// Protocol buffers are encoded by hand: five messages with a dozen fields need neither a compiler
// nor a library. Field numbers: event.proto and summary.proto in tensorboard/compat/proto of
// TensorBoard (the same in tensorflow/core/util and tensorflow/core/framework); wire types,
// varints: protobuf.dev/programming-guides/encoding; framing:
// tensorflow/core/lib/io/record_writer.h.
#include "monitoring/telemetry/event_file.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cerrno>
#include <charconv>
#include <cstring>

#include "data/host.h"
#include "monitoring/telemetry/step_fields.h"

namespace laterna::monitoring {
namespace {

namespace fs = std::filesystem;

static_assert(std::endian::native == std::endian::little, "records are little-endian");

constexpr std::string_view kNameStart = "events.out.tfevents.";
constexpr std::chrono::seconds kFlushEvery{2};

enum EventField { kWallTime = 1, kStep = 2, kFileVersion = 3, kSummary = 5, kSessionLog = 7 };
enum SessionLogField { kStatus = 1 };
constexpr std::int64_t kStatusStart = 1;
enum SummaryField { kValue = 1 };
enum ValueField { kTag = 1, kSimpleValue = 2, kImage = 4 };
enum ImageField { kHeight = 1, kWidth = 2, kColorspace = 3, kEncodedImage = 4 };

template <typename T>
void put_plain(std::string& out, T value) {
  out.append(reinterpret_cast<const char*>(&value), sizeof value);
}

void put_varint(std::string& out, std::uint64_t value) {
  for (; value >= 0x80; value >>= 7) out += static_cast<char>(value | 0x80);
  out += static_cast<char>(value);
}

void put_key(std::string& out, int field, unsigned wire_type) {
  put_varint(out, static_cast<unsigned>(field) << 3 | wire_type);
}

void put_integer(std::string& out, int field, std::int64_t value) {
  put_key(out, field, 0);
  put_varint(out, static_cast<std::uint64_t>(value));
}

void put_double(std::string& out, int field, double value) {
  put_key(out, field, 1);
  put_plain(out, value);
}

void put_bytes(std::string& out, int field, std::string_view bytes) {
  put_key(out, field, 2);
  put_varint(out, bytes.size());
  out += bytes;
}

void put_float(std::string& out, int field, float value) {
  put_key(out, field, 5);
  put_plain(out, value);
}

std::string event(std::int64_t step, EventField field, std::string_view content) {
  std::string out;
  put_double(out, kWallTime, data::unix_time());
  put_integer(out, kStep, step);
  put_bytes(out, field, content);
  return out;
}

// Encodes a Summary. All scalars of a step share one Event, which stores time and step once.
class Scalars {
 public:
  void add(std::string_view tag, double value) {
    std::string entry;
    put_bytes(entry, kTag, tag);
    put_float(entry, kSimpleValue, static_cast<float>(value));
    put_bytes(summary_, kValue, entry);
  }
  const std::string& summary() const { return summary_; }

 private:
  std::string summary_;
};

// --- Framing: length (8 bytes), its masked CRC (4), the event, its masked CRC (4) ---

std::uint32_t masked_crc(std::string_view bytes) {
  return std::rotr(crc32c(bytes), 15) + 0xa282ead8U;
}

void put_record(std::string& out, std::string_view content) {
  std::string length;
  put_plain(length, static_cast<std::uint64_t>(content.size()));
  out += length;
  put_plain(out, masked_crc(length));
  out += content;
  put_plain(out, masked_crc(content));
}

/// Returns the size of the complete records among the first `count` bytes of `records`.
std::size_t whole_records(std::string_view records, std::size_t count) {
  std::size_t end = 0;
  while (end + 8 <= count) {
    std::uint64_t length;
    std::memcpy(&length, records.data() + end, sizeof length);
    if (end + 16 + length > count) break;
    end += 16 + length;
  }
  return end;
}

// TensorBoard reads a folder's files in order of their names and never returns to an earlier one.
// The time in the name is therefore later than in every existing file, even if the program starts
// twice within a second or on a host whose clock is slow. (It has ten digits until the year 2286.)
std::int64_t time_for_name(const fs::path& folder) {
  auto time = static_cast<std::int64_t>(data::unix_time());
  std::error_code ignored;
  for (fs::directory_iterator entry(folder, ignored), end; entry != end; entry.increment(ignored)) {
    const std::string name = entry->path().filename();
    if (!name.starts_with(kNameStart)) continue;
    std::int64_t other = 0;
    std::from_chars(name.data() + kNameStart.size(), name.data() + name.size(), other);
    time = std::max(time, other + 1);
  }
  return time;
}

}  // namespace

std::uint32_t crc32c(std::string_view bytes) {
  static const auto table = [] {
    std::array<std::uint32_t, 256> entries{};
    for (std::uint32_t i = 0; i < 256; ++i) {
      std::uint32_t crc = i;
      for (int bit = 0; bit < 8; ++bit) crc = crc >> 1 ^ (crc & 1 ? 0x82f63b78U : 0U);
      entries[i] = crc;
    }
    return entries;
  }();
  std::uint32_t crc = ~0U;
  for (const char byte : bytes) {
    crc = crc >> 8 ^ table[(crc ^ static_cast<unsigned char>(byte)) & 0xff];
  }
  return ~crc;
}

// TensorBoard drops earlier records from the step of a START record on, so START has the next step.
// A run from step 0 writes one too, since an earlier start may have been killed before it saved.
EventFile::EventFile(const fs::path& folder, std::int64_t step) : folder_(folder) {
  put_record(head_, event(0, kFileVersion, "brain.Event:2"));
  std::string session;
  put_integer(session, kStatus, kStatusStart);
  put_record(head_, event(step + 1, kSessionLog, session));
  flush();
}

EventFile::~EventFile() {
  flush();
  if (file_ >= 0) close(file_);
}

void EventFile::scalar(std::string_view tag, std::int64_t step, double value) {
  Scalars scalars;
  scalars.add(tag, value);
  append(event(step, kSummary, scalars.summary()));
}

void EventFile::image(std::string_view tag, std::int64_t step, std::string_view png, int height,
                      int width, int channels) {
  std::string image, entry, summary;
  put_integer(image, kHeight, height);
  put_integer(image, kWidth, width);
  put_integer(image, kColorspace, channels);
  put_bytes(image, kEncodedImage, png);
  put_bytes(entry, kTag, tag);
  put_bytes(entry, kImage, image);
  put_bytes(summary, kValue, entry);
  append(event(step, kSummary, summary));
}

void EventFile::step(const StepRecord& record) {
  Scalars scalars;
  for_each_number(record, [&](const Field& field, const Labels& labels, auto value) {
    if (field.tensorboard) scalars.add(fill(field.tensorboard, labels), double(value));
  });
  append(event(record.step, kSummary, scalars.summary()));
}

void EventFile::evaluation(const EvaluationRecord& r) {
  Scalars scalars;
  for_each_figure(r, [&](const char* name, auto value) {
    scalars.add(fmt::format("evaluation/{}", name), static_cast<double>(value));
  });
  append(event(r.step, kSummary, scalars.summary()));
}

void EventFile::append(std::string_view event) {
  put_record(waiting_, event);
  if (Clock::now() - flushed_ >= kFlushEvery) flush();
}

// Writes complete records only. Creating the file and writing its head are retried at every flush:
// without the head TensorBoard would not drop the steps that this file replaces.
void EventFile::flush() {
  flushed_ = Clock::now();
  std::string bytes = size_ == 0 ? head_ : "";
  bytes += waiting_;
  waiting_.clear();
  if (bytes.empty() || (file_ < 0 && !open_file())) return;
  trouble_.clear();
  const std::size_t done = write(bytes);
  std::size_t kept = whole_records(bytes, done);
  if (size_ == 0 && kept < head_.size()) kept = 0;
  size_ += static_cast<std::int64_t>(kept);
  if (kept < done && ftruncate(file_, size_) != 0) note_trouble(errno);
}

bool EventFile::open_file() {
  std::error_code failed;
  fs::create_directories(folder_, failed);
  path_ = folder_ / fmt::format("{}{:010}.{}.{}", kNameStart, time_for_name(folder_),
                                data::host_name(), getpid());
  file_ = open(path_.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
  if (file_ < 0) note_trouble(errno);
  return file_ >= 0;
}

/// Returns how many bytes were written. Writes after the last complete record rather than at the
/// end of the file, so that a partial record that could not be truncated is overwritten.
std::size_t EventFile::write(std::string_view bytes) {
  std::size_t done = 0;
  while (done < bytes.size()) {
    const ssize_t written = ::pwrite(file_, bytes.data() + done, bytes.size() - done,
                                     size_ + static_cast<std::int64_t>(done));
    if (written < 0 && errno == EINTR) continue;
    if (written <= 0) {
      note_trouble(errno);
      break;
    }
    done += static_cast<std::size_t>(written);
  }
  return done;
}

void EventFile::note_trouble(int error) {
  trouble_ = fmt::format("{}: cannot be written: {}; TensorBoard misses the steps until it can be",
                         path_.string(), std::strerror(error));
}

}  // namespace laterna::monitoring
