// `laterna train`: a training run from its folder. Starts it, or goes on from the newest
// checkpoint; saves as configured, when it is done, and when it is asked to stop (status 75).
#include <ATen/Parallel.h>
#include <fmt/format.h>

#include <memory>

#include "data/error.h"
#include "dist/agreement.h"
#include "dist/watchdog.h"
#include "launch/checkpoint_writer.h"
#include "launch/coordinator.h"
#include "launch/resume.h"
#include "launch/run_folder.h"
#include "launch/stop_request.h"
#include "launch/together.h"
#include "launch/trainer.h"
#include "launch/verbs.h"
#include "monitoring/warnings.h"

namespace laterna::launch {
namespace {

struct Request {
  std::string config, run;
  Settings settings;
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

/// Begins to note what each rank does. A run is as good without: then it says so and goes on.
void keep_activity(const std::filesystem::path& folder, dist::World& world) {
  std::error_code failed;
  if (world.rank() == 0) {  // an earlier start may have had more ranks
    std::filesystem::remove_all(folder, failed);
    std::filesystem::create_directories(folder, failed);
  }
  world.control().barrier()->wait();
  try {
    world.activity().open(dist::activity_file(folder, world.rank()), world.rank(), world.host());
  } catch (const std::runtime_error& error) {
    fmt::print(stderr, "rank {}: warning: {}; `laterna inspect` will not show what it does\n",
               world.rank(), error.what());
  }
}

/// A training under way on this rank.
class Training {
 public:
  Training(dist::World& world, const Config& config, const RunFolder& folder,
           const data::ImageSet& images);
  /// To the last step, or until ranks agree to stop. Returns the exit status.
  int run();

 private:
  void introduce() const;
  bool is_due() const;
  void save();
  void save_at_the_end();
  void saved(const Saved& saved);

  dist::World& world_;
  const Config& config_;
  const RunFolder& folder_;
  const data::ImageSet& images_;
  Trainer trainer_;
  std::int64_t start_, step_;
  StopRequest stop_;
  std::unique_ptr<Coordinator> coordinator_;  // on rank 0
  std::unique_ptr<CheckpointWriter> writer_;
  Saved last_save_{};
};

Training::Training(dist::World& world, const Config& config, const RunFolder& folder,
                   const data::ImageSet& images)
    : world_(world),
      config_(config),
      folder_(folder),
      images_(images),
      trainer_(config, images, world),
      start_(resume(folder, images, world, trainer_)),
      step_(start_),
      stop_(folder.path(), world.control()) {
  together(world, [&] {
    if (world.rank() != 0) return;
    stop_.clear();
    folder.store(config);
    coordinator_ = std::make_unique<Coordinator>(config, folder, start_);
  });
  writer_ = std::make_unique<CheckpointWriter>(folder.path(), config, images.sha256(), world,
                                               coordinator_ ? &coordinator_->log() : nullptr,
                                               [this](const Saved& result) { saved(result); });
}

void Training::introduce() const {
  const std::string here =
      config_.parallel.expert > 1
          ? fmt::format(" ({} on rank 0)", model::count_of(trainer_.parameters().specs()))
          : "";
  fmt::print("{} parameters{}, {} images, {} rank(s) with {} thread(s) on {}, micro-batch {}{}\n",
             model::count_of(model::parameter_specs(config_.model)), here, images_.count(),
             world_.size(), at::get_num_threads(), world_.device().description(),
             config_.training.micro_batch,
             start_ > 0 ? fmt::format(", going on from step {}", start_) : "");
}

bool Training::is_due() const {
  const auto& c = config_.checkpoint;
  if (c.every > 0 && step_ % c.every == 0) return true;
  if (c.minutes == 0) return false;
  return same_on_all_ranks(world_, coordinator_ && coordinator_->minutes_are_over()) != 0;
}

void Training::save() {
  if (coordinator_) coordinator_->saving();
  writer_->begin(trainer_.state());
}

void Training::saved(const Saved& result) {
  last_save_ = result;
  if (coordinator_) coordinator_->saved(result);
}

void Training::save_at_the_end() {
  save();
  writer_->finish();
  if (last_save_.step != step_ || last_save_.failure.empty()) return;
  throw TogetherError(1,
                      fmt::format("step {} could not be saved: {}; the same command goes on from "
                                  "the last checkpoint",
                                  step_, last_save_.failure));
}

int Training::run() {
  if (coordinator_) introduce();
  const auto scope = world_.activity().enter("between two operations of training");
  trainer_.start(start_);
  while (step_ < config_.training.steps) {
    const auto record = trainer_.train_step(stop_);
    if (!record) break;
    step_ = record->step;
    if (coordinator_) coordinator_->step(*record);
    writer_->poll();
    if (is_due()) save();
  }
  save_at_the_end();
  const bool done = step_ >= config_.training.steps;
  if (coordinator_) {
    coordinator_->finish();
    stop_.clear();
    fmt::print("{} at step {}; everything is saved in {}\n", done ? "done" : "stopped on request",
               step_, folder_.path().string());
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
  world.control().barrier()->wait();  // every rank's activity is there to be watched
  const dist::Watchdog watchdog(folder->activity_folder(), world.rank(), config.watchdog.seconds,
                                [file = folder->warnings_file()](auto& kind, auto& text) {
                                  monitoring::append_warning(file, kind, text);
                                });
  form_groups(world, config);
  if (world.rank() == 0) fmt::print("{}\n", text);
  return Training(world, config, *folder, *images).run();
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
