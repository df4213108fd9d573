// `laterna train`: starts a training run in its folder, or resumes it from its newest checkpoint.
// Saves as configured, when training is done, and when it is asked to stop (status 75).
#include <ATen/Parallel.h>
#include <fmt/format.h>

#include <memory>

#include "data/error.h"
#include "dist/agreement.h"
#include "dist/cuda_backend.h"
#include "dist/watchdog.h"
#include "launch/checkpoint/checkpoint_writer.h"
#include "launch/collective.h"
#include "launch/evaluation/evaluation.h"
#include "launch/evaluation/sampling.h"
#include "launch/training/coordinator.h"
#include "launch/training/resume.h"
#include "launch/training/run_folder.h"
#include "launch/training/stop_request.h"
#include "launch/training/trainer.h"
#include "launch/verbs/verbs.h"
#include "launch/version.h"
#include "monitoring/telemetry/warnings.h"

namespace laterna::launch {
namespace {

struct Request {
  std::string config, run;
  Settings settings;
};

constexpr double kCheckpointAppears = 90;  // seconds; NFS may cache a folder's listing for 60

/// Collective. Opens the heartbeat file of each rank. Training does not depend on these files: a
/// failure is only a warning.
void start_heartbeat(const std::filesystem::path& folder, dist::World& world) {
  std::error_code failed;
  if (world.rank() == 0) {  // an earlier start may have had more ranks
    std::filesystem::remove_all(folder, failed);
    std::filesystem::create_directories(folder, failed);
  }
  world.control().barrier()->wait();
  try {
    world.heartbeat().open(dist::heartbeat_file(folder, world.rank()), world.rank(), world.host());
  } catch (const std::runtime_error& error) {
    fmt::print(stderr,
               "rank {}: warning: {}; `laterna inspect` will not show what this rank is doing\n",
               world.rank(), error.what());
  }
}

/// A training run on this rank, from its start or resumption to its end.
class Training {
 public:
  Training(dist::World& world, const Config& config, const RunFolder& folder,
           const data::ImageSet& images, StopRequest& stop);
  /// Trains to the last step, or until the ranks agree to stop. Returns the exit status.
  int run();

 private:
  void introduce() const;
  bool is_due() const;
  void save();
  bool evaluation_is_due() const;
  void evaluate();
  void train_until_stopped();
  void save_at_the_end();
  void saved(const Saved& saved);

  dist::World& world_;
  const Config& config_;
  const RunFolder& folder_;
  const data::ImageSet& images_;
  StopRequest& stop_;
  std::unique_ptr<Evaluator> evaluator_;  // null without evaluations
  Trainer trainer_;
  std::int64_t start_, step_;
  std::unique_ptr<Coordinator> coordinator_;  // on rank 0
  std::unique_ptr<CheckpointWriter> writer_;
  Saved last_save_{};
};

/// Returns null when evaluation.every is 0. Called before training, so that errors in [evaluation]
/// show at once.
std::unique_ptr<Evaluator> open_evaluator(const Config& config, const data::ImageSet& images,
                                          dist::World& world, StopRequest& stop) {
  const auto& c = config.evaluation;
  if (c.every == 0) return {};
  const EvaluatorOptions options{
      .reference = c.reference.empty() ? images.folder().string() : c.reference,
      .extractor = c.extractor,
      .samples = c.samples};
  return std::make_unique<Evaluator>(options, image_shape(config), world, &stop);
}

monitoring::BuildFacts build_facts(const dist::World& world) {
  const auto* cuda = world.device().cuda();
  return {version(), torch_version(), dist::mpi_version(), cuda ? cuda->nccl_version() : "none"};
}

Training::Training(dist::World& world, const Config& config, const RunFolder& folder,
                   const data::ImageSet& images, StopRequest& stop)
    : world_(world),
      config_(config),
      folder_(folder),
      images_(images),
      stop_(stop),
      evaluator_(open_evaluator(config, images, world, stop)),
      trainer_(config, images, world),
      start_(resume(folder, images, world, trainer_)),
      step_(start_) {
  run_collectively(world, [&] {
    if (world.rank() != 0) return;
    folder.store(config);
    coordinator_ = std::make_unique<Coordinator>(config, folder, start_, build_facts(world));
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
             start_ > 0 ? fmt::format(", resuming from step {}", start_) : "");
}

bool Training::is_due() const {
  const auto& c = config_.checkpoint;
  if (c.every > 0 && step_ % c.every == 0) return true;
  if (c.minutes == 0) return false;
  return broadcast_from_root(world_, coordinator_ && coordinator_->minutes_are_over()) != 0;
}

void Training::save() {
  if (coordinator_) coordinator_->saving();
  last_save_ = {};
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
  throw CollectiveError(1,
                        fmt::format("step {} could not be saved: {}; the same command resumes from "
                                    "the last checkpoint",
                                    step_, last_save_.failure));
}

bool Training::evaluation_is_due() const {
  const std::int64_t every = config_.evaluation.every;
  return every > 0 && step_ > 0 && step_ % every == 0;
}

/// Saves a checkpoint and evaluates its weights, because a rank may hold only a shard of
/// the candidates. A failed evaluation is only a warning.
void Training::evaluate() {
  save();
  writer_->finish();
  if (last_save_.step == step_ && !last_save_.failure.empty()) {
    if (coordinator_) coordinator_->not_evaluated(step_, "its checkpoint could not be saved");
    return;
  }
  // Outside the try block: this scope restores the operation of training also after a failure,
  // which the scopes that an exception leaves do not.
  const auto scope = world_.heartbeat().enter("evaluation");
  try {
    std::unique_ptr<LoadedWeights> weights;
    run_collectively(world_, [&] {
      wait_for_checkpoint(folder_.path(), step_, kCheckpointAppears,
                          [&] { world_.heartbeat().touch(); });
      weights = std::make_unique<LoadedWeights>(load_sampled_weights(
          {.run = folder_.path().string(), .step = step_}, config_, world_.device().torch()));
    });
    const auto evaluated = evaluator_->run(*weights, config_, &stop_);
    run_collectively(world_, [&] {
      if (coordinator_) coordinator_->evaluated(evaluated);
    });
  } catch (const CollectiveError& error) {
    if (coordinator_) coordinator_->not_evaluated(step_, error.what());
  }
}

/// Trains from start_ to the last step. Throws StopAgreed when the ranks agree to stop.
void Training::train_until_stopped() {
  trainer_.start(start_);  // first, because it sets the step that checkpoints record
  // A run that was stopped or died during an evaluation repeats the evaluation first.
  if (evaluation_is_due() &&
      broadcast_from_root(world_, coordinator_ && !coordinator_->has_evaluated(step_)) != 0) {
    evaluate();
  }
  while (step_ < config_.training.steps) {
    const auto record = trainer_.train_step(stop_);
    if (!record) throw StopAgreed{};
    step_ = record->step;
    if (coordinator_) coordinator_->step(*record);
    writer_->poll();
    if (is_due()) save();
    if (evaluation_is_due()) evaluate();
  }
}

int Training::run() {
  if (coordinator_) introduce();
  const auto scope = world_.heartbeat().enter("between two operations of training");
  bool done = true;
  try {
    train_until_stopped();
  } catch (const StopAgreed&) {
    done = false;
  }
  save_at_the_end();
  if (coordinator_) {
    coordinator_->finish();
    stop_.clear();
    fmt::print("{} at step {}; everything is saved in {}\n", done ? "done" : "stopped on request",
               step_, folder_.path().string());
  }
  return done ? 0 : kStoppedOnRequest;
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
  });
  StopRequest stop(folder->path(), world.control());
  if (world.rank() == 0) stop.clear();  // a request from before this start
  run_collectively(world, [&] { config = folder->reconcile(config); });
  config.training.micro_batch = broadcast_from_root(world, choose_micro_batch(config, world));
  const std::string text = to_toml(config);
  const auto others = dist::ranks_that_differ(world.control(), version() + "\n" + text);
  if (!others.empty()) {
    throw CollectiveError(2, fmt::format("rank {} reads another configuration than rank 0, or runs "
                                         "another version of the program; start all ranks with the "
                                         "same program, --config and --set",
                                         others.front()));
  }
  const auto strangers = dist::ranks_that_differ(world.control(), images->sha256());
  if (!strangers.empty()) {
    throw CollectiveError(3,
                          fmt::format("rank {} reads other images than rank 0 at data.path = {}; "
                                      "give all hosts the same data set",
                                      strangers.front(), config.data.path));
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
  if (world.rank() == 0) fmt::print("{}\n", text);
  try {
    return Training(world, config, *folder, *images, stop).run();
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
    StopRequest::listen();
    action = [request](dist::World& world) { return train(*request, world); };
  });
}

}  // namespace laterna::launch
