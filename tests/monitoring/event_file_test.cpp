// Event files read back by an independent reader (event_reader.h): content, names, time of writing,
// and a full disk. tests/system/events.py reads them with TensorBoard.
#include "monitoring/telemetry/event_file.h"

#include <sys/resource.h>

#include <chrono>
#include <csignal>
#include <map>
#include <set>
#include <thread>

#include "data/pictures/image_file.h"
#include "tests/data/pictures.h"
#include "tests/data/scratch_folder.h"
#include "tests/monitoring/event_reader.h"

namespace laterna::monitoring {
namespace {

namespace fs = std::filesystem;
using data::ScratchFolder;

/// Returns the files of a folder in order of their names.
std::vector<fs::path> files_in(const fs::path& folder) {
  std::set<fs::path> sorted;
  for (const auto& entry : fs::directory_iterator(folder)) sorted.insert(entry.path());
  return {sorted.begin(), sorted.end()};
}

Content only_file(const fs::path& folder) {
  const auto files = files_in(folder);
  EXPECT_EQ(files.size(), 1U);
  return read_events(files.at(0));
}

std::set<std::int64_t> steps_of(const Content& content, const std::string& tag) {
  std::set<std::int64_t> steps;
  if (!content.scalars.contains(tag)) return steps;
  for (const auto& [step, value] : content.scalars.at(tag)) steps.insert(step);
  return steps;
}

using Steps = std::set<std::int64_t>;

// --- Tests ---

TEST(Crc32c, MatchesPublishedValues) {
  EXPECT_EQ(crc32c(""), 0U);
  EXPECT_EQ(crc32c("123456789"), 0xe3069283U);  // the check value of CRC catalogues
  std::string ascending;
  for (int i = 0; i < 32; ++i) ascending += static_cast<char>(i);
  // RFC 3720, appendix B.4
  EXPECT_EQ(crc32c(std::string(32, '\0')), 0x8a9136aaU);
  EXPECT_EQ(crc32c(std::string(32, '\xff')), 0x62a8ab43U);
  EXPECT_EQ(crc32c(ascending), 0x46dd794eU);
  EXPECT_EQ(crc32c(std::string(ascending.rbegin(), ascending.rend())), 0x113fdb5cU);
}

TEST(EventFile, BeginsWithVersionAndNextStep) {
  const ScratchFolder scratch;
  const auto seconds = [] {
    return std::chrono::duration<double>(std::chrono::system_clock::now().time_since_epoch())
        .count();
  };
  const double before = seconds();
  const EventFile events(scratch / "a/run", 12);  // creates folders, writes the head at once
  const Content content = only_file(scratch / "a/run");
  EXPECT_EQ(content.records, 2U);
  EXPECT_EQ(content.versions, std::vector<std::string>{"brain.Event:2"});
  EXPECT_EQ(content.starts, std::vector<std::int64_t>{13});
  for (const double time : content.times) {
    EXPECT_GE(time, before);
    EXPECT_LE(time, seconds());
  }
}

TEST(EventFile, StoresScalarsAndImages) {
  const ScratchFolder scratch;
  const data::Image picture = data::test_picture(3, 40, 30);
  const std::int64_t late = std::int64_t{1} << 40;
  {
    EventFile events(scratch.path(), 0);
    events.scalar("a", 0, 0.1);
    events.scalar("a", late, -1e30);
    events.scalar("nothing", 1, std::nan(""));
    events.scalar(std::string(300, 't'), 2, 5);
    events.image("grid", 128, data::encode_png(picture, "picture"), 40, 30, 3);
  }
  const Content content = only_file(scratch.path());
  const std::map<std::int64_t, float> expected = {{0, 0.1F}, {late, -1e30F}};
  EXPECT_EQ(content.scalars.at("a"), expected);
  EXPECT_TRUE(std::isnan(content.scalars.at("nothing").at(1)));
  EXPECT_EQ(content.scalars.at(std::string(300, 't')).at(2), 5);
  const Picture& found = content.pictures.at("grid");
  EXPECT_EQ(found.step, 128);
  EXPECT_EQ(found.height, 40);
  EXPECT_EQ(found.width, 30);
  EXPECT_EQ(found.colorspace, 3);
  EXPECT_EQ(data::decode_image(data::bytes_of(found.png), "grid").pixels, picture.pixels);
}

TEST(EventFile, WritesTheTagsOfAStep) {
  const ScratchFolder scratch;
  StepRecord record;
  record.step = 7;
  record.loss = 0.5;
  record.grad_norm = 1.5;
  record.learning_rate = 1e-4;
  record.samples_per_second = 90;
  record.seconds = 2;
  record.data_wait_seconds = 0.25;
  record.communication_wait_seconds = 0.125;
  record.phases = {{"forward", 0.75}};
  record.ranks = {{1, 4096}, {3, 1024}};
  record.rank_seconds = {1, 1, 3};
  record.rank_memory_bytes = {1024, 1024, 4096};
  record.assignments = {{1, 3, 4}, {0, 0}};
  record.selecting_layers = {2, 11};
  {
    EventFile events(scratch.path(), 0);
    events.step(record);
    record.step = 8;
    record.skipped = true;
    record.loss = std::nan("");
    record.exchange = {{"dispatch", 6, 600, 0.5}};
    record.imbalance = 1.25;
    record.lateral = {{2, -0.5, 0.625, 6, 3}};
    record.spike_rates = {{2, "z", 0.0625}};
    events.step(record);
  }
  const Content content = only_file(scratch.path());
  std::map<std::string, float> seventh, eighth;
  for (const auto& [tag, values] : content.scalars) {
    if (values.contains(7)) seventh[tag] = values.at(7);
    if (values.contains(8)) eighth[tag] = values.at(8);
  }
  const std::map<std::string, float> expected = {{"train/loss", 0.5},
                                                 {"train/grad_norm", 1.5},
                                                 {"train/learning_rate", 1e-4F},
                                                 {"train/samples_per_second", 90},
                                                 {"train/seconds", 2},
                                                 {"train/data_wait_seconds", 0.25},
                                                 {"train/communication_wait_seconds", 0.125},
                                                 {"train/skipped", 0},
                                                 {"phases/forward", 0.75},
                                                 {"ranks/step_seconds_min", 1},
                                                 {"ranks/step_seconds_median", 1},
                                                 {"ranks/step_seconds_max", 3},
                                                 {"ranks/memory_bytes_min", 1024},
                                                 {"ranks/memory_bytes_median", 1024},
                                                 {"ranks/memory_bytes_max", 4096},
                                                 {"candidates/2/0", 0.125},
                                                 {"candidates/2/1", 0.375},
                                                 {"candidates/2/2", 0.5}};
  for (const auto& [tag, value] : expected) EXPECT_EQ(seventh.at(tag), value) << tag;
  EXPECT_FALSE(seventh.contains("candidates/11/0"));  // that layer has no assignments, so no shares
  EXPECT_TRUE(std::isnan(eighth.at("train/loss")));
  const std::map<std::string, float> further = {{"train/skipped", 1},
                                                {"exchange/dispatch/bytes", 600},
                                                {"exchange/imbalance", 1.25},
                                                {"exchange/dispatch/wait_seconds", 0.5},
                                                {"router/2/gamma", -0.5},
                                                {"router/2/threshold", 0.625},
                                                {"router/2/offdiagonal_sum", 6},
                                                {"router/2/trace", 3},
                                                {"spikes/2/z", 0.0625}};
  for (const auto& [tag, value] : further) EXPECT_EQ(eighth[tag], value) << tag;
  EXPECT_EQ(eighth.size(), seventh.size() + further.size() - 1);
  EXPECT_EQ(content.records, 4U);  // one per step, after two head records
}

TEST(EventFile, WritesTheTagsOfAnEvaluation) {
  const ScratchFolder scratch;
  EventFile(scratch.path(), 0)
      .evaluation({.step = 50,
                   .samples = 5000,
                   .fid = 9,
                   .fid_low = 8,
                   .fid_high = 11,
                   .fid_infinity = 7,
                   .kid = 0.5,
                   .kid_deviation = 0.25,
                   .precision = 0.75,
                   .recall = 0.625,
                   .named_share = 0.875,
                   .named_share_real = 0.5,
                   .effective_classes = 9.5,
                   .effective_classes_real = 9.75,
                   .images_per_second = 40});
  std::map<std::string, float> found;
  for (const auto& [tag, values] : only_file(scratch.path()).scalars) found[tag] = values.at(50);
  const std::map<std::string, float> expected = {{"evaluation/samples", 5000},
                                                 {"evaluation/fid", 9},
                                                 {"evaluation/fid_low", 8},
                                                 {"evaluation/fid_high", 11},
                                                 {"evaluation/fid_infinity", 7},
                                                 {"evaluation/kid", 0.5},
                                                 {"evaluation/kid_deviation", 0.25},
                                                 {"evaluation/precision", 0.75},
                                                 {"evaluation/recall", 0.625},
                                                 {"evaluation/named_share", 0.875},
                                                 {"evaluation/named_share_real", 0.5},
                                                 {"evaluation/effective_classes", 9.5},
                                                 {"evaluation/effective_classes_real", 9.75},
                                                 {"evaluation/images_per_second", 40}};
  EXPECT_EQ(found, expected);
}

// Several starts within a second, after a file from a host whose clock is fast.
TEST(EventFile, NameSortsAfterEarlierFiles) {
  const ScratchFolder scratch;
  data::put(scratch / "events.out.tfevents.9000000000.zebra.1", "");
  for (std::int64_t step = 0; step < 3; ++step) EventFile(scratch.path(), step);
  const auto files = files_in(scratch.path());
  ASSERT_EQ(files.size(), 4U);
  EXPECT_TRUE(files[0].string().ends_with("zebra.1"));
  for (std::size_t i = 1; i < 4; ++i) {
    EXPECT_EQ(read_events(files[i]).starts, std::vector<std::int64_t>{std::int64_t(i)});
  }
}

TEST(EventFile, BuffersRecordsForTwoSeconds) {
  const ScratchFolder scratch;
  const auto begin = std::chrono::steady_clock::now();
  EventFile events(scratch.path(), 0);
  std::int64_t step = 0;
  const auto on_disk = [&] { return steps_of(only_file(scratch.path()), "x").size(); };
  while (on_disk() == 0 && step < 3000) {
    events.scalar("x", ++step, 1);
    std::this_thread::sleep_for(std::chrono::milliseconds(10));
  }
  EXPECT_GE(std::chrono::steady_clock::now() - begin, std::chrono::milliseconds(1900));
  EXPECT_EQ(on_disk(), std::size_t(step));
  events.scalar("x", ++step, 1);
  events.flush();
  EXPECT_EQ(on_disk(), std::size_t(step));
}

// --- A full disk, simulated by RLIMIT_FSIZE, which also cuts a write short ---

class FileSizeLimit {
 public:
  explicit FileSizeLimit(std::uintmax_t bytes) {
    signal(SIGXFSZ, SIG_IGN);
    getrlimit(RLIMIT_FSIZE, &before_);
    const rlimit full{bytes, before_.rlim_max};
    setrlimit(RLIMIT_FSIZE, &full);
  }
  ~FileSizeLimit() { setrlimit(RLIMIT_FSIZE, &before_); }

 private:
  rlimit before_{};
};

void add(EventFile& events, std::int64_t first, std::int64_t last) {
  for (std::int64_t step = first; step <= last; ++step) events.scalar("x", step, double(step));
}

TEST(EventFile, DropsWholeRecordsWhenTheDiskIsFull) {
  const ScratchFolder scratch;
  EventFile events(scratch.path(), 0);
  const fs::path path = files_in(scratch.path()).at(0);
  add(events, 1, 2);
  events.flush();
  const std::uintmax_t before = fs::file_size(path);
  events.scalar("x", 3, 3);
  events.flush();
  const std::uintmax_t record = fs::file_size(path) - before;
  EXPECT_EQ(events.trouble(), "");
  for (std::uintmax_t part = 0; part < record; ++part) {
    const std::uintmax_t size = fs::file_size(path);
    {
      const FileSizeLimit limit(size + record + part);  // one record and a part of the next
      add(events, 4, 6);
      events.flush();
    }
    EXPECT_NE(events.trouble().find(path.string()), std::string::npos);
    EXPECT_NE(events.trouble().find("File too large"), std::string::npos);
    EXPECT_EQ(fs::file_size(path), size + record);
    EXPECT_EQ(steps_of(read_events(path), "x"), (Steps{1, 2, 3, 4}));
  }
  add(events, 7, 7);
  events.flush();
  EXPECT_EQ(events.trouble(), "");
  EXPECT_EQ(steps_of(read_events(path), "x"), (Steps{1, 2, 3, 4, 7}));
}

TEST(EventFile, HeadIsWrittenOnceThereIsFreeSpace) {
  const ScratchFolder scratch;
  const std::uintmax_t head = [] {
    const ScratchFolder other;
    const EventFile events(other.path(), 4);
    return fs::file_size(files_in(other.path()).at(0));
  }();
  for (std::uintmax_t bytes = 0; bytes < head; bytes += 5) {
    const fs::path folder = scratch / std::to_string(bytes);
    const auto events = [&] {
      const FileSizeLimit limit(bytes);
      auto begun = std::make_unique<EventFile>(folder, 4);
      EXPECT_EQ(fs::file_size(files_in(folder).at(0)), 0U);
      add(*begun, 5, 5);
      begun->flush();
      EXPECT_NE(begun->trouble(), "");
      return begun;
    }();
    add(*events, 6, 6);
    events->flush();
    EXPECT_EQ(events->trouble(), "");
    const Content content = only_file(folder);
    EXPECT_EQ(content.versions.size(), 1U);
    EXPECT_EQ(content.starts, std::vector<std::int64_t>{5});
    EXPECT_EQ(steps_of(content, "x"), Steps{6});
  }
}

TEST(EventFile, FailedCreationIsReportedAndRetried) {
  const ScratchFolder scratch;
  data::put(scratch / "run", "a file where a folder should be");
  EventFile events(scratch / "run", 0);
  EXPECT_NE(events.trouble().find((scratch / "run/events.out.tfevents.").string()),
            std::string::npos);
  fs::remove(scratch / "run");
  add(events, 1, 1);
  events.flush();
  EXPECT_EQ(events.trouble(), "");
  EXPECT_EQ(steps_of(only_file(scratch / "run"), "x"), Steps{1});
}

}  // namespace
}  // namespace laterna::monitoring
