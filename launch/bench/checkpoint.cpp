// `laterna bench checkpoint`: how much saving slows down training, and how close the writer comes
// to the speed of the disk. Training as in `train` saves again and again, and three kinds of steps
// are timed: plain ones, those in which a save begins (training pauses for the copy in memory), and
// those during which a save is written in the background. After each save, `dd conv=fsync` writes
// as many bytes to the same folder for comparison with the writer.
#include <fmt/format.h>

#include <chrono>
#include <cstdlib>
#include <filesystem>
#include <nlohmann/json.hpp>

#include "data/error.h"
#include "data/host.h"
#include "launch/bench/bench.h"
#include "launch/checkpoint/checkpoint_writer.h"
#include "launch/collective.h"
#include "launch/training/trainer.h"

namespace laterna::launch {
namespace {

using data::seconds_since;

namespace fs = std::filesystem;
using Clock = std::chrono::steady_clock;

constexpr std::size_t kLeastSaves = 5;
constexpr int kPlainSteps = 5;  // between two saves

/// Writes about `bytes` with dd and returns the seconds for `bytes`, from the time that dd itself
/// reports, which leaves out its start.
double dd(const fs::path& folder, std::int64_t bytes) {
  const fs::path file = folder / "dd";
  const std::int64_t blocks = std::max<std::int64_t>(1, bytes >> 20);
  const std::string command = fmt::format(
      "LC_ALL=C dd if=/dev/zero of='{}' bs=1M count={} conv=fsync 2>&1", file.string(), blocks);
  FILE* pipe = popen(command.c_str(), "r");
  std::string said;
  for (char buffer[256]; pipe && std::fgets(buffer, sizeof buffer, pipe);) said += buffer;
  const bool failed = !pipe || pclose(pipe) != 0;
  fs::remove(file);
  const auto at = said.find(" copied, ");
  if (failed || at == std::string::npos) throw data::WriteError(command + ": " + said);
  return std::strtod(said.c_str() + at + 9, nullptr) * double(bytes) / double(blocks << 20);
}

struct Measured {
  std::vector<double> plain, beginning, behind;  // seconds of steps: plain, save begins, save runs
  std::vector<double> stall;                     // seconds for which training paused in `beginning`
  std::vector<double> writing, dd;               // seconds of each save and each dd
  std::int64_t bytes = 0;                        // size of a checkpoint
};

Measured measure(const Config& config, const data::ImageSet& images, dist::World& world,
                 const fs::path& folder, double seconds) {
  Measured measured;
  bool under_way = false;
  CheckpointWriter writer(folder, config, images.sha256(), world, nullptr, [&](const Saved& saved) {
    if (!saved.failure.empty()) throw CollectiveError(1, saved.failure);
    under_way = false;
    measured.bytes = saved.record.bytes;
    measured.writing.push_back(saved.record.write_seconds);
  });
  Trainer trainer(config, images, world);
  StopRequest stop(folder, 0, world.control());
  trainer.start(0);
  for (int i = 0; i < kPlainSteps; ++i) trainer.train_step(stop);  // warm-up
  const auto began = Clock::now();
  int plain = 0;
  bool enough = false;
  while (!enough) {
    const bool was_under_way = under_way;
    const auto start = Clock::now();
    trainer.train_step(stop);
    writer.poll();
    const bool begins = plain == kPlainSteps;
    if (begins) {
      const auto stands = Clock::now();
      writer.begin(trainer.state());
      measured.stall.push_back(seconds_since(stands));
      under_way = true;
      plain = 0;
    }
    const double step = seconds_since(start);
    (begins          ? measured.beginning
     : was_under_way ? measured.behind
                     : measured.plain)
        .push_back(step);
    if (was_under_way && !under_way) {
      run_collectively(world, [&] {
        if (world.rank() == 0) measured.dd.push_back(dd(folder, measured.bytes));
      });
    }
    if (!begins && !was_under_way) ++plain;
    enough = broadcast_from_root(world, measured.writing.size() >= kLeastSaves &&
                                            seconds_since(began) >= seconds) != 0;
  }
  writer.finish();
  return measured;
}

/// Returns a time with its ratio to a plain step: "12.30 ms (1.040 of a plain step)".
std::string beside(double seconds, double plain) {
  return fmt::format("{:.2f} ms ({:.3f} of a plain step)", 1e3 * seconds, seconds / plain);
}

}  // namespace

int bench_checkpoint(Config config, dist::World& world, double seconds, const std::string& output) {
  const fs::path folder = fs::path(output) / "bench-checkpoint";
  std::unique_ptr<data::ImageSet> images;
  run_collectively(world, [&] {
    if (world.rank() == 0) {
      fs::remove_all(folder);  // left by an interrupted run
      fs::create_directories(folder);
    }
    images = std::make_unique<data::ImageSet>(open_images(config));
  });
  config.checkpoint.keep = 1;
  config.training.micro_batch = broadcast_from_root(world, choose_micro_batch(config, world));
  form_groups(world, config);
  const auto measured = measure(config, *images, world, folder, seconds);
  world.control().barrier()->wait();
  if (world.rank() != 0) return 0;
  fs::remove_all(folder);
  const double plain = median(measured.plain), writing = median(measured.writing);
  const double opponent = median(measured.dd), megabytes = double(measured.bytes) / 1e6;
  fmt::print("{} saves of {:.1f} MB, {} rank(s); medians\n", measured.stall.size(), megabytes,
             world.size());
  fmt::print("plain step              {:.2f} ms\n", 1e3 * plain);
  fmt::print("pause for a save        {}\n", beside(median(measured.stall), plain));
  fmt::print("step that begins a save {}\n", beside(median(measured.beginning), plain));
  if (!measured.behind.empty()) {
    fmt::print("steps during a save     {}\n", beside(median(measured.behind), plain));
  }
  fmt::print("checkpoint writer       {:.0f} MB/s, including hashes and syncs\n",
             megabytes / writing);
  fmt::print("dd conv=fsync           {:.0f} MB/s; ratio writer to dd {:.2f}\n",
             megabytes / opponent, opponent / writing);
  const nlohmann::json line{
      {"benchmark", "checkpoint"},
      {"program", "laterna"},
      {"ranks", world.size()},
      {"saves", measured.stall.size()},
      {"bytes", measured.bytes},
      {"step_seconds", plain},
      {"stall_seconds", median(measured.stall)},
      {"saving_step_seconds", median(measured.beginning)},
      {"step_seconds_while_writing",
       measured.behind.empty() ? nlohmann::json() : nlohmann::json(median(measured.behind))},
      {"writer_bytes_per_second", double(measured.bytes) / writing},
      {"dd_bytes_per_second", double(measured.bytes) / opponent}};
  fmt::print("{}\n", line.dump());
  return 0;
}

}  // namespace laterna::launch
