// `laterna train`: a training run from its folder. Starts it, or goes on from the newest
// checkpoint; saves as configured, when it is done, and when it is asked to stop (status 75).
#include <ATen/Parallel.h>
#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <memory>

#include "data/durable_file.h"
#include "data/error.h"
#include "dist/agreement.h"
#include "launch/run_folder.h"
#include "launch/stop_request.h"
#include "launch/together.h"
#include "launch/trainer.h"
#include "launch/verbs.h"
#include "monitoring/progress.h"

namespace laterna::launch {
namespace {

using Clock = std::chrono::steady_clock;

struct Request {
  std::string config, run;
  Settings settings;
};

/// The checkpointing of a run: rank 0 decides when, all take part.
class Saver {
 public:
  Saver(const RunFolder& folder, const Config& config, std::string data_sha256, dist::World& world)
      : folder_(folder), config_(config), data_sha256_(std::move(data_sha256)), world_(world) {}

  bool is_due(std::int64_t step) const {
    const auto& c = config_.checkpoint;
    if (c.every > 0 && step % c.every == 0) return true;
    if (c.minutes == 0) return false;
    const double minutes = std::chrono::duration<double>(Clock::now() - last_).count() / 60;
    return same_on_all_ranks(world_, minutes >= c.minutes) != 0;
  }
  void save(const TrainingState& state) {
    last_ = Clock::now();
    const auto scope = world_.activity().enter("saving a checkpoint");
    together(world_, [&] {  // the log must not be shorter than the checkpoint
      if (world_.rank() == 0) data::sync_file(folder_.log_file());
    });
    save_checkpoint(folder_.path(), config_, data_sha256_, state, world_);
    if (world_.rank() == 0) prune_checkpoints(folder_.path(), config_.checkpoint.keep);
  }

 private:
  const RunFolder& folder_;
  const Config& config_;
  std::string data_sha256_;
  dist::World& world_;
  Clock::time_point last_ = Clock::now();
};

void check_images(const data::ImageSet& images, const Config& config) {
  const auto& m = config.model;
  if (images.channels() == m.channels && images.height() == m.image_size &&
      images.width() == m.image_size) {
    return;
  }
  throw UsageError(
      fmt::format("data.path = {}: its images are {}x{}x{}, the model wants {}x{}x{} (channels, "
                  "height, width); "
                  "change model.channels and model.image_size, or import the data with --size {}",
                  config.data.path, images.channels(), images.height(), images.width(), m.channels,
                  m.image_size, m.image_size, m.image_size));
}

data::ImageSet open_images(const Config& config) {
  if (config.data.path.empty()) {
    throw UsageError(
        "data.path is not set; give the folder of a data set, which `laterna data` "
        "makes");
  }
  auto images = data::ImageSet::open(config.data.path);
  check_images(images, config);
  return images;
}

/// Loads the newest checkpoint that rank 0 sees, where there is one. Returns the steps done.
std::int64_t resume(const RunFolder& folder, const data::ImageSet& images, dist::World& world,
                    Trainer& trainer) {
  std::int64_t newest = -1;
  if (world.rank() == 0) {
    const auto steps = complete_checkpoints(folder.path());
    if (!steps.empty()) newest = steps.back();
  }
  newest = same_on_all_ranks(world, newest);
  std::int64_t step = 0;
  together(world, [&] {
    if (newest < 0) {
      if (world.rank() == 0) images.verify();  // once, before anything is learnt from them
      return;
    }
    const auto seen = complete_checkpoints(folder.path());
    if (std::find(seen.begin(), seen.end(), newest) == seen.end()) {
      throw data::InputError(fmt::format(
          "{}: does not show this rank the checkpoint of step {} that rank 0 sees; give a --run "
          "folder on a file system that all hosts share",
          folder.path().string(), newest));
    }
    const Manifest manifest = read_manifest(folder.path(), newest);
    if (manifest.data_sha256 != images.sha256()) {
      throw UsageError(fmt::format(
          "data.path = {}: holds other pixels (SHA-256 {}) than this run was trained with ({})",
          images.folder().string(), images.sha256(), manifest.data_sha256));
    }
    if (world.rank() == 0) verify_checkpoint(folder.path(), manifest);
    auto state = trainer.state();
    load_checkpoint(folder.path(), manifest, state);
    step = state.step;
  });
  return step;
}

/// Begins to note what each rank does. A run is as good without: then it says so and goes on.
void keep_activity(const std::filesystem::path& folder, dist::World& world) {
  std::error_code failed;
  if (world.rank() == 0) {  // an earlier start may have had more ranks
    std::filesystem::remove_all(folder, failed);
    std::filesystem::create_directories(folder, failed);
  }
  world.control().barrier()->wait();
  try {
    world.activity().open(folder / fmt::format("rank-{:05}", world.rank()), world.rank(),
                          world.host());
  } catch (const std::runtime_error& error) {
    fmt::print(stderr, "rank {}: warning: {}; `laterna inspect` will not show what it does\n",
               world.rank(), error.what());
  }
}

int train_run(dist::World& world, const Config& config, const RunFolder& folder,
              const data::ImageSet& images) {
  const bool first = world.rank() == 0;
  Trainer trainer(config, images, world);
  const std::int64_t start = resume(folder, images, world, trainer);
  StopRequest stop(folder.path(), world.control());
  std::unique_ptr<monitoring::RunLog> log;
  together(world, [&] {
    if (!first) return;
    stop.clear();
    folder.store(config);
    log = std::make_unique<monitoring::RunLog>(folder.log_file(), start);
  });
  if (first) {
    const std::string here =
        config.parallel.expert > 1
            ? fmt::format(" ({} on rank 0)", model::count_of(trainer.parameters().specs()))
            : "";
    fmt::print("{} parameters{}, {} images, {} rank(s) with {} thread(s) on {}, micro-batch {}{}\n",
               model::count_of(model::parameter_specs(config.model)), here, images.count(),
               world.size(), at::get_num_threads(), world.device().description(),
               config.training.micro_batch,
               start > 0 ? fmt::format(", going on from step {}", start) : "");
  }

  const auto scope = world.activity().enter("between two operations of training");
  Saver saver(folder, config, images.sha256(), world);
  monitoring::Progress progress("step", config.training.steps, start);
  trainer.start(start);
  double loss = 0;
  std::int64_t step = start;
  while (step < config.training.steps) {
    const auto record = trainer.train_step(stop);
    if (!record) break;
    step = record->step;
    if (first) {
      log->append(*record);
      loss += (record->loss - loss) / std::min<double>(100, double(step - start));
      progress.update(
          step, fmt::format("loss {:.4f}  {:.0f} samples/s", loss, record->samples_per_second));
    }
    if (saver.is_due(step)) saver.save(trainer.state());
  }
  saver.save(trainer.state());
  const bool done = step >= config.training.steps;
  if (first) {
    progress.finish();
    stop.clear();
    fmt::print("{} at step {}; everything is saved in {}\n", done ? "done" : "stopped on request",
               step, folder.path().string());
  }
  return done ? 0 : kStoppedOnRequest;
}

int train(const Request& request, dist::World& world) {
  all_tasks_together(world);
  world.open_device();
  std::unique_ptr<RunFolder> folder;
  std::unique_ptr<data::ImageSet> images;
  Config config;
  together(world, [&] {
    config = read_config(request.config, request.settings);
    images = std::make_unique<data::ImageSet>(open_images(config));
    folder = std::make_unique<RunFolder>(request.run, world.rank() == 0);
  });
  together(world, [&] { config = folder->reconcile(config); });
  config.training.micro_batch = same_on_all_ranks(world, choose_micro_batch(config, world));
  const std::string text = to_toml(config);
  const auto others =
      dist::ranks_that_differ(world.control(), std::string(LATERNA_VERSION) + "\n" + text);
  if (!others.empty()) {
    throw TogetherError(2, fmt::format("rank {} reads another configuration than rank 0, or is "
                                       "another version of the program; start all ranks with the "
                                       "same program, --config and --set",
                                       others.front()));
  }
  keep_activity(folder->activity_folder(), world);
  form_groups(world, config);
  if (world.rank() == 0) fmt::print("{}\n", text);
  return train_run(world, config, *folder, *images);
}

}  // namespace

void add_train(CLI::App& app, Action& action) {
  const auto request = std::make_shared<Request>();
  auto* verb = app.add_subcommand("train", "Train, or go on training, on any number of ranks");
  verb->add_option("--config", request->config, "A TOML file, such as launch/presets/mnist.toml")
      ->required();
  verb->add_option("--run", request->run, "The run folder; an existing run goes on")->required();
  verb->add_option("--set", request->settings, "table.key=value, over the file; repeatable")
      ->take_all()
      ->allow_extra_args(false);
  verb->callback([&action, request] {
    StopRequest::listen();
    action = [request](dist::World& world) { return train(*request, world); };
  });
}

}  // namespace laterna::launch
