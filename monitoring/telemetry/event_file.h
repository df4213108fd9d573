// Writes scalars and images for TensorBoard: one event file in the run folder for each start of the
// program. The authoritative record of a run is log.jsonl; the event file is a view of it, so a
// full disk leaves a gap in the curves but does not stop training.
//
// A file is a sequence of records in TFRecord framing; each record is a protocol buffer `Event`.
#pragma once

#include <chrono>
#include <cstdint>
#include <filesystem>
#include <string>
#include <string_view>

#include "monitoring/telemetry/step_record.h"

namespace laterna::monitoring {

/// Not thread-safe. No member function throws; trouble() reports failures.
class EventFile {
 public:
  /// Creates `folder`/events.out.tfevents.<unix time>.<host>.<pid> for a run that has done `step`
  /// steps. TensorBoard then drops the later steps of earlier files in the folder.
  EventFile(const std::filesystem::path& folder, std::int64_t step);
  ~EventFile();
  EventFile(const EventFile&) = delete;
  EventFile& operator=(const EventFile&) = delete;

  /// Adds a value, which TensorBoard keeps as float32.
  void scalar(std::string_view tag, std::int64_t step, double value);
  /// Adds an image: `png` holds the bytes of a PNG file of this size; channels: 1 grey, 3 RGB.
  void image(std::string_view tag, std::int64_t step, std::string_view png, int height, int width,
             int channels);
  /// Adds train/, phases/, ranks/, candidates/<layer>/<j> (share of the layer's assignments) and,
  /// where the record has them, exchange/, router/<layer>/ and spikes/<layer>/<site>. A step of 12
  /// layers takes 1.3 KB, or 4.4 KB with routers and spikes. TensorBoard shows a thousand points of
  /// a curve, so a long run need not add every step.
  void step(const StepRecord& record);
  /// Adds the figures of an evaluation as evaluation/<name>.
  void evaluation(const EvaluationRecord& record);

  /// Writes the records buffered in memory to the file. Also happens when a record is added two
  /// seconds or more after the last flush, and in the destructor.
  void flush();
  /// Returns why records were dropped at the last flush, naming the file; empty when none were.
  const std::string& trouble() const { return trouble_; }

 private:
  using Clock = std::chrono::steady_clock;

  void append(std::string_view event);
  bool open_file();
  std::size_t write(std::string_view bytes);
  void note_trouble(int error);

  std::filesystem::path folder_, path_;
  int file_ = -1;
  std::int64_t size_ = 0;  // bytes of complete records in the file
  std::string head_;       // version and START record, which begin the file
  std::string waiting_;    // complete records not yet written
  Clock::time_point flushed_;
  std::string trouble_;
};

/// Returns the CRC-32 with the reflected Castagnoli polynomial, as in RFC 3720, appendix B.4.
std::uint32_t crc32c(std::string_view bytes);

}  // namespace laterna::monitoring
