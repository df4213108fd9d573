#include "launch/training/training_run.h"

#include <ATen/Parallel.h>
#include <fmt/format.h>

#include "dist/cuda_backend.h"
#include "launch/collective.h"
#include "launch/evaluation/sampling.h"
#include "launch/training/resume.h"
#include "launch/version.h"
#include "monitoring/telemetry/progress.h"

namespace laterna::launch {
namespace {

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

}  // namespace

TrainingRun::TrainingRun(dist::World& world, const Config& config, RunFolder& folder,
                         const data::ImageSet& images, StopRequest& stop)
    : world_(world),
      config_(config),
      folder_(folder),
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
                                               [this](const Saved& result) {
                                                 last_save_ = result;
                                                 if (coordinator_) coordinator_->saved(result);
                                               });
  if (coordinator_) introduce(images);
}

void TrainingRun::introduce(const data::ImageSet& images) const {
  const std::string here =
      config_.parallel.expert > 1
          ? fmt::format(" ({} on rank 0)", model::count_of(trainer_.parameters().specs()))
          : "";
  fmt::print("{} parameters{}, {} images, {} rank(s) with {} thread(s) on {}, micro-batch {}{}\n",
             model::count_of(model::parameter_specs(config_.model)), here, images.count(),
             world_.size(), at::get_num_threads(), world_.device().description(),
             config_.training.micro_batch,
             start_ > 0 ? fmt::format(", resuming from step {}", start_) : "");
}

int TrainingRun::run() {
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
    monitoring::print_if_read(
        stdout, fmt::format("{} at step {}; everything is saved in {}\n",
                            done ? "done" : "stopped on request", step_, folder_.path().string()));
  }
  return done ? 0 : kStoppedOnRequest;
}

/// Trains from start_ to the last step. Throws StopAgreed when the ranks agree to stop.
void TrainingRun::train_until_stopped() {
  trainer_.start(start_);  // first, because it sets the step that checkpoints record
  follow_coordinator();    // an evaluation that the run's last start did not finish
  while (step_ < config_.training.steps) {
    const auto record = trainer_.train_step(stop_);
    if (!record) throw StopAgreed{};
    step_ = record->step;
    if (coordinator_) coordinator_->step(*record);
    writer_->poll();
    follow_coordinator();
  }
}

/// Collective. Saves and evaluates, if the coordinator decides so at this step.
void TrainingRun::follow_coordinator() {
  const Decision decision = coordinator_ ? coordinator_->decide(step_) : Decision{};
  const auto agreed =
      broadcast_from_root(world_, (decision.save ? 1 : 0) + (decision.evaluate ? 2 : 0));
  if ((agreed & 1) != 0) save();
  if ((agreed & 2) != 0) evaluate();
}

void TrainingRun::save() {
  writer_->finish();  // first, because the coordinator deletes old and incomplete checkpoints
  if (coordinator_) coordinator_->saving();
  last_save_ = {};
  writer_->begin(trainer_.state());
}

void TrainingRun::save_at_the_end() {
  save();
  writer_->finish();
  if (last_save_.step != step_ || last_save_.failure.empty()) return;
  throw CollectiveError(1,
                        fmt::format("step {} could not be saved: {}; the same command resumes from "
                                    "the last checkpoint",
                                    step_, last_save_.failure));
}

/// Saves a checkpoint and evaluates its weights, because a rank may hold only a shard of
/// the candidates. A failed evaluation is only a warning.
void TrainingRun::evaluate() {
  save();
  writer_->finish();
  if (last_save_.step == step_ && !last_save_.failure.empty()) {
    if (coordinator_) coordinator_->not_evaluated(step_, "its checkpoint could not be saved");
    return;
  }
  // Outside the try block: this scope restores the operation of training also after a failure,
  // which the scopes that an exception leaves do not.
  const auto scope = world_.heartbeat().enter("evaluation");
  if (coordinator_) coordinator_->evaluating(step_);
  try {
    std::unique_ptr<LoadedWeights> weights;
    run_collectively(world_, [&] {
      wait_for_checkpoint(folder_.path(), step_, appears_within(world_),
                          [&] { world_.heartbeat().touch(); });
      weights = std::make_unique<LoadedWeights>(
          load_sampled_weights({.run = folder_.path().string(), .step = step_}, config_, world_));
    });
    const auto evaluated = evaluator_->run(*weights, config_, &stop_);
    run_collectively(world_, [&] {
      if (coordinator_) coordinator_->evaluated(evaluated);
    });
  } catch (const CollectiveError& error) {
    if (coordinator_) coordinator_->not_evaluated(step_, error.what());
  } catch (const StopAgreed&) {
    if (coordinator_) coordinator_->evaluation_ended();
    throw;
  }
  if (coordinator_) coordinator_->evaluation_ended();
}

}  // namespace laterna::launch
