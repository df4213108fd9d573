// Data-parallel and expert-parallel training on the ranks. Trainer::train_step (trainer.cpp) reads
// as the algorithm; everything around it is what an unattended job needs: resuming from a
// checkpoint bit for bit, requests to stop, the step's record for the log.
#pragma once

#include <ATen/core/Tensor.h>

#include <filesystem>
#include <memory>
#include <optional>

#include "data/image_set.h"
#include "data/loader.h"
#include "data/partition.h"
#include "dist/experts/exchange.h"
#include "dist/experts/step_plan.h"
#include "dist/gradient_reducer.h"
#include "dist/world.h"
#include "launch/checkpoint/checkpoint.h"
#include "launch/config.h"
#include "launch/training/micro_batch.h"
#include "launch/training/step_totals.h"
#include "launch/training/stop_request.h"
#include "model/denoiser.h"
#include "model/diffusion.h"
#include "model/optimizer.h"
#include "model/probes/spike_activity.h"
#include "monitoring/telemetry/run_log.h"
#include "monitoring/telemetry/step_record.h"

namespace laterna::launch {

/// Opens the data set that a configuration trains on. Throws UsageError when data.path is not set
/// or its images have another shape than the model's; data::InputError as ImageSet::open does.
data::ImageSet open_images(const Config& config);

/// Collective: forms the groups that config.parallel.expert asks for. Throws CollectiveError when
/// it does not divide the ranks.
void form_groups(dist::World& world, const Config& config);

/// So many skipped steps in a row end the run.
inline constexpr std::int64_t kMostSkipped = 5;

/// A training run's model and optimiser on this rank, trained step by step. All calls are
/// collective.
class Trainer {
 public:
  /// Needs groups formed by form_groups() for this configuration. Computes on the world's device.
  Trainer(const Config& config, const data::ImageSet& images, dist::World& world);

  /// Sets the number of steps done to `step`, whose result state() already holds, and starts the
  /// loader there.
  void start(std::int64_t step);
  /// Trains one step and returns its record, or nothing when the ranks agreed to stop before the
  /// step was done, which leaves no trace of the step. A step whose loss or gradient is not finite
  /// is skipped: it updates nothing, on any rank. Throws CollectiveError on all ranks when
  /// kMostSkipped steps in a row were skipped, or when replicas no longer hold the same weights.
  std::optional<monitoring::StepRecord> train_step(StopRequest& stop);

  TrainingState state() { return {step_, parameters_, optimizer_}; }
  const model::Parameters& parameters() const { return parameters_; }

 private:
  std::vector<std::int64_t> image_shape() const;
  dist::StepPlan plan();
  bool accumulate_all(StopRequest& stop, data::Batch& batch, const dist::StepPlan& plan,
                      StepTotals& totals);
  void accumulate(const at::Tensor& pixels, std::vector<std::int64_t> samples,
                  const dist::MicroBatchPlan& plan, const model::SpikeProbe& probe,
                  StepTotals& totals);
  void reduce(StepTotals& totals);
  void update(double norm, bool finite, const StepTotals& totals);
  [[noreturn]] void fail_not_finite(double norm, const StepTotals& totals);
  void check_replicas();
  std::vector<monitoring::Phase> phases() const;

  Config config_;
  const data::ImageSet& images_;
  dist::World& world_;
  data::Share share_;                 // this rank's samples before the plan places the group's
  std::vector<std::int64_t> counts_;  // [EP] samples that each rank of the group trains
  data::Share group_share_;           // the group's samples
  std::int64_t micro_batch_, micro_batches_;
  dist::Exchange exchange_;
  model::ExpertGroup group_;
  model::Parameters parameters_;
  model::Denoiser denoiser_;
  model::Diffusion diffusion_;
  model::Optimizer optimizer_;
  dist::GradientReducer reducer_;             // of parameters that every rank holds
  dist::GradientReducer candidates_reducer_;  // of candidates, over the replica group
  std::unique_ptr<data::Loader> loader_;
  std::int64_t step_ = 0;
  std::int64_t skipped_ = 0;  // steps skipped in a row

  /// Seconds of the current step, by part.
  struct {
    double data = 0, plan = 0, forward = 0, backward = 0, reduce = 0, optimizer = 0;
    double agreeing = 0;  // small collectives: waiting for other ranks
  } spent_;
  std::optional<model::SpikeActivity> watched_;  // set in a step whose spikes are observed
  std::int64_t next_look_ = 0;                   // spikes are observed next at or after this step
};

}  // namespace laterna::launch
