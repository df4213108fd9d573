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

// --- The scalars of a step, by group ---

void add_training(Scalars& out, const StepRecord& r) {
  out.add("train/loss", r.loss);
  out.add("train/grad_norm", r.grad_norm);
  out.add("train/learning_rate", r.learning_rate);
  out.add("train/samples_per_second", r.samples_per_second);
  out.add("train/seconds", r.seconds);
  out.add("train/data_wait_seconds", r.data_wait_seconds);
  out.add("train/communication_wait_seconds", r.communication_wait_seconds);
  out.add("train/skipped", r.skipped ? 1 : 0);
  for (const auto& phase : r.phases) out.add(fmt::format("phases/{}", phase.name), phase.seconds);
}

// Mean and maximum reveal a slow rank; a thousand curves, one for each rank, would hide it.
void add_ranks(Scalars& out, const StepRecord& r) {
  if (r.ranks.empty()) return;
  double sum = 0, slowest = 0, largest = 0;
  for (const auto& rank : r.ranks) {
    sum += rank.step_seconds;
    slowest = std::max(slowest, rank.step_seconds);
    largest = std::max(largest, static_cast<double>(rank.memory_bytes));
  }
  out.add("ranks/mean_step_seconds", sum / static_cast<double>(r.ranks.size()));
  out.add("ranks/slowest_step_seconds", slowest);
  out.add("ranks/largest_memory_bytes", largest);
}

void add_exchange(Scalars& out, const StepRecord& r) {
  if (r.exchange.empty()) return;
  for (const auto& transfer : r.exchange) {
    out.add(fmt::format("exchange/{}/bytes", transfer.name), static_cast<double>(transfer.bytes));
    out.add(fmt::format("exchange/{}/wait_seconds", transfer.name), transfer.wait_seconds);
  }
  out.add("exchange/imbalance", r.imbalance);
}

void add_candidates(Scalars& out, const StepRecord& r) {
  for (std::size_t i = 0; i < r.assignments.size(); ++i) {
    std::int64_t total = 0;
    for (const std::int64_t assignments : r.assignments[i]) total += assignments;
    for (std::size_t j = 0; total > 0 && j < r.assignments[i].size(); ++j) {
      out.add(fmt::format("candidates/{}/{}", r.selecting_layers[i], j),
              static_cast<double>(r.assignments[i][j]) / static_cast<double>(total));
    }
  }
}

void add_model(Scalars& out, const StepRecord& r) {
  for (const auto& l : r.lateral) {
    out.add(fmt::format("router/{}/gamma", l.layer), l.gamma);
    out.add(fmt::format("router/{}/threshold", l.layer), l.threshold);
    out.add(fmt::format("router/{}/offdiagonal_sum", l.layer), l.offdiagonal_sum);
    out.add(fmt::format("router/{}/trace", l.layer), l.trace);
  }
  for (const auto& s : r.spike_rates)
    out.add(fmt::format("spikes/{}/{}", s.layer, s.site), s.ratio);
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
  add_training(scalars, record);
  add_ranks(scalars, record);
  add_exchange(scalars, record);
  add_candidates(scalars, record);
  add_model(scalars, record);
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
