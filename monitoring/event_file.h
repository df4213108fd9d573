// What TensorBoard shows of a run: an event file in the run folder, one a start of the program, of
// scalars and pictures. log.jsonl is the record that counts; this is a view of it, so a disk that
// is full costs a gap in the curves and stops nothing.
//
// A file is a row of records in TFRecord framing; each record is a protocol buffer `Event`.
#pragma once

#include <chrono>
#include <cstdint>
#include <filesystem>
#include <string>
#include <string_view>

#include "monitoring/step_record.h"

namespace laterna::monitoring {

/// Used by one thread. Nothing throws: see trouble().
class EventFile {
 public:
  /// Creates `folder`/events.out.tfevents.<unix time>.<host>.<pid> for a run that has done `step`
  /// steps: what earlier files of the folder have of later steps, TensorBoard forgets.
  EventFile(const std::filesystem::path& folder, std::int64_t step);
  ~EventFile();
  EventFile(const EventFile&) = delete;
  EventFile& operator=(const EventFile&) = delete;

  /// TensorBoard keeps float32.
  void scalar(std::string_view tag, std::int64_t step, double value);
  /// `png`: the bytes of a PNG file of this size; channels 1 grey, 3 RGB.
  void image(std::string_view tag, std::int64_t step, std::string_view png, int height, int width,
             int channels);
  /// train/, phases/, ranks/, candidates/<layer>/<j> (the share of the layer's assignments) and,
  /// where the record has them, exchange/, router/<layer>/, spikes/<layer>/<site>. For 12
  /// layers 1.3 KB, and 4.4 KB with routers and spikes. TensorBoard shows a thousand points of a
  /// curve: a long run need not bring it every step.
  void step(const StepRecord& record);
  /// evaluation/
  void evaluation(const EvaluationRecord& record);

  /// Hands what waits in memory to the system. Happens by itself when something comes two seconds
  /// or more after the last time, and at the end.
  void flush();
  /// Why records were dropped at the last flush, naming the file; empty when none were.
  const std::string& trouble() const { return trouble_; }

 private:
  using Clock = std::chrono::steady_clock;

  void append(std::string_view event);
  bool open_file();
  std::size_t write(std::string_view bytes);
  void note_trouble(int error);

  std::filesystem::path folder_, path_;
  int file_ = -1;
  std::int64_t size_ = 0;  // of the whole records in the file
  std::string head_;       // the records that the file begins with
  std::string waiting_;    // whole records
  Clock::time_point flushed_;
  std::string trouble_;
};

/// The CRC-32 with Castagnoli's polynomial, reflected, as in RFC 3720, appendix B.4.
std::uint32_t crc32c(std::string_view bytes);

}  // namespace laterna::monitoring
