// `laterna train`: opens the run folder and the images, checks that all ranks were started alike,
// and hands over to TrainingRun, which starts or resumes the training.
#include <fmt/format.h>

#include <memory>

#include "data/error.h"
#include "dist/agreement.h"
#include "dist/watchdog.h"
#include "launch/collective.h"
#include "launch/threads.h"
#include "launch/training/micro_batch.h"
#include "launch/training/run_folder.h"
#include "launch/training/stop_request.h"
#include "launch/training/trainer.h"
#include "launch/training/training_run.h"
#include "launch/verbs/verbs.h"
#include "launch/version.h"
#include "model/kernels/cpu/kernels.h"
#include "monitoring/telemetry/warnings.h"

namespace laterna::launch {
namespace {

struct Request {
  std::string config, run;
  Settings settings;
};

/// Collective. Throws CollectiveError when a rank would compute something else than rank 0: another
/// program, kernels whose sums round differently, another configuration or other images.
void require_equal_ranks(dist::World& world, const Config& config, const data::ImageSet& images) {
  const auto compare = [&](int status, const std::string& mine, const std::string& problem) {
    const auto others = dist::ranks_that_differ(world.control(), mine);
    if (others.empty()) return;
    throw CollectiveError(status, fmt::format("rank {} {}", others.front(), problem));
  };
  compare(2, version(),
          fmt::format("runs another version of the program than rank 0, which runs {}; install the "
                      "same one on all hosts",
                      version()));
  const std::string kernels = kernels::kernels<float>().instruction_set;
  compare(
      2, kernels,
      fmt::format("has other CPU kernels than rank 0, which has {}, and they round differently; "
                  "use hosts of one kind, or start all ranks with LATERNA_KERNELS=avx2 (or "
                  "portable): mpirun -x LATERNA_KERNELS=avx2",
                  kernels));
  compare(2, to_toml(config),
          "reads another configuration than rank 0; start all ranks with the same --config and "
          "--set");
  compare(3, images.sha256(),
          fmt::format("reads other images than rank 0 at data.path = {}; give all hosts the same "
                      "data set",
                      config.data.path));
}

void warn_at_start(const RunFolder& folder, const std::string& text) {
  fmt::print(stderr, "warning: {}\n", text);
  monitoring::append_warning(folder.warnings_file(), "resuming", text);
}

/// Collective. Opens the heartbeat file of each rank. Training does not depend on these files: a
/// failure is only a warning.
void start_heartbeat(const std::filesystem::path& folder, dist::World& world) {
  std::error_code failed;
  if (world.rank() == 0) std::filesystem::create_directories(folder, failed);
  world.control().barrier()->wait();
  try {
    world.heartbeat().open(dist::heartbeat_file(folder, world.rank()), world.rank(), world.host());
  } catch (const std::runtime_error& error) {
    fmt::print(stderr,
               "rank {}: warning: {}; `laterna inspect` will not show what this rank is doing\n",
               world.rank(), error.what());
  }
}

int train(const Request& request, dist::World& world) {
  require_one_world(world);
  world.open_device();
  std::unique_ptr<RunFolder> folder;
  std::unique_ptr<data::ImageSet> images;
  Config config;
  run_collectively(world, [&] {
    config = read_config(request.config, request.settings);
    images = std::make_unique<data::ImageSet>(open_images(config));
    folder = std::make_unique<RunFolder>(request.run, world.rank() == 0);
    std::error_code none;
    if (world.rank() == 0) {  // those of the start before, which may have had more ranks
      std::filesystem::remove_all(folder->heartbeat_folder(), none);
    }
  });
  const auto owner = broadcast_from_root(world, world.rank() == 0 ? folder->owner() : 0);
  run_collectively(world, [&] { folder->await_owner(owner, appears_within(world)); });
  StopRequest stop(folder->path(), owner, world.control());
  run_collectively(world, [&] {
    config = folder->reconcile(config, [&](const std::string& text) {
      if (world.rank() == 0) warn_at_start(*folder, text);
    });
  });
  config.training.micro_batch = broadcast_from_root(world, choose_micro_batch(config, world));
  require_equal_ranks(world, config, *images);
  if (const auto trouble = share_cores(world, config.parallel.threads); !trouble.empty()) {
    fmt::print(stderr, "warning: {}\n", trouble);
  }
  run_collectively(world, [&] {  // for `laterna inspect` and `stop` during a long start
    if (world.rank() == 0 && !folder->has_begun()) folder->store(config);
  });
  start_heartbeat(folder->heartbeat_folder(), world);
  world.control().barrier()->wait();  // the watchdog reads the heartbeats of all ranks
  const dist::Watchdog watchdog(folder->heartbeat_folder(), world.rank(), config.watchdog.seconds,
                                [file = folder->warnings_file()](auto& kind, auto& text) {
                                  monitoring::append_warning(file, kind, text);
                                });
  form_groups(world, config);
  run_collectively(world, [&] { require_memory(config, world); });
  if (world.rank() == 0) fmt::print("{}\n", to_toml(config));
  try {
    return TrainingRun(world, config, *folder, *images, stop).run();
  } catch (const StopAgreed&) {
    if (world.rank() == 0) {
      stop.clear();
      fmt::print("stopped on request before training began; there was nothing to save\n");
    }
    return kStoppedOnRequest;
  }
}

}  // namespace

void add_train(CLI::App& app, Action& action) {
  const auto request = std::make_shared<Request>();
  auto* verb = app.add_subcommand("train", "Start or resume training, on any number of ranks");
  verb->add_option("--config", request->config, "A TOML file, such as launch/presets/mnist.toml")
      ->required();
  verb->add_option("--run", request->run, "The run folder; an existing run is resumed")->required();
  verb->add_option("--set", request->settings,
                   "Override a key of the file: table.key=value; repeatable")
      ->take_all()
      ->allow_extra_args(false);
  verb->footer(
      "The loss that is shown, logged and exported is the plain mean squared error. The\n"
      "gradient is that of the same mean or, with training.weighting = \"min_snr\", of the mean\n"
      "in which each sample's error is multiplied by min(SNR, 5) / SNR of its diffusion step\n"
      "(Hang et al. 2023, arXiv 2303.09556).");
  verb->callback([&action, request] {
    action = {[request](dist::World& world) { return train(*request, world); }, OnSignal::stop};
  });
}

}  // namespace laterna::launch
