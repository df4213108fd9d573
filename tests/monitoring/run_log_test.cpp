// The log of a run: every step appears once, with all digits, even after a full disk.
#include "monitoring/telemetry/run_log.h"

#include <sys/resource.h>

#include <csignal>
#include <nlohmann/json.hpp>

#include "data/error.h"
#include "tests/data/scratch_folder.h"
#include "tests/monitoring/example_records.h"

namespace laterna::monitoring {
namespace {

namespace fs = std::filesystem;
using data::expect_error;
using data::ScratchFolder;

void append(RunLog& log, std::int64_t first, std::int64_t last) {
  for (std::int64_t step = first; step <= last; ++step) {
    StepRecord record;
    record.step = step;
    record.loss = 1.0 / double(step);
    record.grad_norm = 1e-17 * double(step);
    log.append(record);
  }
}

std::vector<std::int64_t> steps_of(const fs::path& path) {
  std::vector<std::int64_t> steps;
  for (const auto& record : read_log(path, 100).steps) steps.push_back(record.step);
  return steps;
}

TEST(RunLog, KeepsEveryDigit) {
  const ScratchFolder scratch;
  EXPECT_TRUE(read_log(scratch / "log.jsonl", 100).steps.empty());
  {
    RunLog log(scratch / "log.jsonl", 0);
    append(log, 1, 7);
  }
  const auto records = read_log(scratch / "log.jsonl", 100).steps;
  ASSERT_EQ(records.size(), 7U);
  EXPECT_EQ(records[6].loss, 1.0 / 7);
  EXPECT_EQ(records[6].grad_norm, 7e-17);
  const std::string text = data::get(scratch / "log.jsonl");
  const auto line = nlohmann::json::parse(text.substr(0, text.find('\n')));
  for (const char* key : {"step", "loss", "grad_norm", "samples_per_second"}) {
    EXPECT_TRUE(line.contains(key)) << key;
  }
}

TEST(RunLog, IsTruncatedToTheCheckpoint) {
  const ScratchFolder scratch;
  const fs::path path = scratch / "log.jsonl";
  {
    RunLog log(path, 0);
    append(log, 1, 9);
  }
  RunLog log(path, 6);
  EXPECT_EQ(steps_of(path), (std::vector<std::int64_t>{1, 2, 3, 4, 5, 6}));
  append(log, 7, 8);
  EXPECT_EQ(steps_of(path), (std::vector<std::int64_t>{1, 2, 3, 4, 5, 6, 7, 8}));
}

TEST(RunLog, DropsOnlyATornLastLine) {
  const ScratchFolder scratch;
  const fs::path path = scratch / "log.jsonl";
  const std::string whole = "{\"step\": 1, \"loss\": 2.5}\n{\"step\": 2, \"loss\": 1.5}\n";
  for (const char* torn : {"{\"step\": 3, \"lo", "{\"st", "{\"step\": \"three\"}", "{}", "3"}) {
    data::put(path, whole + torn);
    EXPECT_NO_THROW(EXPECT_EQ(steps_of(path), (std::vector<std::int64_t>{1, 2}))) << torn;
    EXPECT_NO_THROW({
      RunLog log(path, 9);
      append(log, 3, 3);
    }) << torn;
    EXPECT_NO_THROW(EXPECT_EQ(steps_of(path), (std::vector<std::int64_t>{1, 2, 3}))) << torn;
  }
}

TEST(RunLog, ADamagedLineCostsThatLine) {
  const ScratchFolder scratch;
  const fs::path path = scratch / "log.jsonl";
  data::put(path,
            "{\"step\":1}\n{\"st\n\n{\"step\":2}\n{\"evaluation\":{\"fid\":3,\"step\":2}\n"
            "{\"evaluation\":{\"fid\":4},\"step\":2}\n{\"step\":3}\n");
  EXPECT_EQ(read_log(path, 100).damaged, 3);
  EXPECT_EQ(steps_of(path), (std::vector<std::int64_t>{1, 2, 3}));
  RunLog log(path, 2);
  EXPECT_EQ(log.damaged(), 3);
  ASSERT_EQ(log.evaluations().size(), 1U);
  EXPECT_EQ(log.evaluations()[0].fid, 4);
  append(log, 3, 4);
  EXPECT_EQ(steps_of(path), (std::vector<std::int64_t>{1, 2, 3, 4}));
}

TEST(RunLog, IsSummarisedFromItsLastSteps) {
  const ScratchFolder scratch;
  const fs::path path = scratch / "log.jsonl";
  RunLog log(path, 0);
  append(log, 1, 20);
  log.append(example_skipped_step());
  append(log, 21, 30);
  const auto content = read_log(path, 4);
  ASSERT_EQ(content.steps.size(), 4U);
  EXPECT_EQ(content.steps.front().step, 27);
  EXPECT_EQ(content.steps.back().loss, 1.0 / 30);
  EXPECT_EQ(content.first_loss, 1);
  EXPECT_EQ(content.skipped, 1);
}

TEST(RunLog, FollowsItsPath) {
  const ScratchFolder scratch;
  fs::create_directory(scratch / "run");
  const fs::path path = scratch / "run/log.jsonl";
  RunLog log(path, 0);
  append(log, 1, 1);
  fs::rename(scratch / "run", scratch / "moved");
  append(log, 2, 2);
  EXPECT_NE(log.trouble().find(path.string()), std::string::npos);
  fs::create_directory(scratch / "run");
  append(log, 3, 3);
  EXPECT_EQ(log.trouble(), "");
  EXPECT_EQ(steps_of(scratch / "moved/log.jsonl"), std::vector<std::int64_t>{1});
  EXPECT_EQ(steps_of(path), (std::vector<std::int64_t>{2, 3}));
  // What has taken its place may be another run's: not before reopen() is it written to.
  fs::remove(path);
  data::put(path, "{\"step\":7}\n");
  append(log, 4, 4);
  EXPECT_EQ(steps_of(path), std::vector<std::int64_t>{7});
  log.reopen();
  append(log, 8, 8);
  EXPECT_EQ(steps_of(path), (std::vector<std::int64_t>{7, 8}));
}

TEST(RunLog, ErrorNamesAnUnwritableFile) {
  const ScratchFolder scratch;
  data::put(scratch / "file", "x");
  expect_error<data::WriteError>([&] { RunLog(scratch / "file/log.jsonl", 0); }, {"log.jsonl"});
}

TEST(RunLog, KeepsEvaluationsAndSteps) {
  const ScratchFolder scratch;
  const fs::path path = scratch / "log.jsonl";
  {
    RunLog log(path, 0);
    for (std::int64_t step = 1; step <= 4; ++step) {
      append(log, step, step);
      if (step % 2 == 0) log.append(EvaluationRecord{.step = step, .fid = 10.0 / double(step)});
    }
  }
  ASSERT_EQ(read_log(path, 100).evaluations.size(), 2U);
  EXPECT_EQ(read_log(path, 100).evaluations[1].fid, 2.5);
  const RunLog log(path, 3);  // truncates evaluations as well
  EXPECT_EQ(read_log(path, 100).evaluations.size(), 1U);
  ASSERT_EQ(log.evaluations().size(), 1U);
  EXPECT_EQ(log.evaluations()[0].step, 2);
  EXPECT_EQ(steps_of(path), (std::vector<std::int64_t>{1, 2, 3}));
}

// RLIMIT_FSIZE simulates a full disk: part of a line is written, then an error is returned.
TEST(RunLog, KeepsLinesInMemoryWhileTheDiskIsFull) {
  const ScratchFolder scratch;
  const fs::path path = scratch / "log.jsonl";
  RunLog log(path, 0);
  append(log, 1, 2);
  signal(SIGXFSZ, SIG_IGN);
  rlimit before{};
  getrlimit(RLIMIT_FSIZE, &before);
  const rlimit full{fs::file_size(path) + 20, before.rlim_max};
  setrlimit(RLIMIT_FSIZE, &full);
  append(log, 3, 4);
  EXPECT_NE(log.trouble().find(path.string()), std::string::npos);
  EXPECT_NE(log.trouble().find("File too large"), std::string::npos);
  EXPECT_EQ(steps_of(path), (std::vector<std::int64_t>{1, 2}));
  EXPECT_EQ(data::get(path).back(), '\n');
  setrlimit(RLIMIT_FSIZE, &before);
  append(log, 5, 5);
  EXPECT_EQ(log.trouble(), "");
  EXPECT_EQ(steps_of(path), (std::vector<std::int64_t>{1, 2, 3, 4, 5}));
}

}  // namespace
}  // namespace laterna::monitoring
