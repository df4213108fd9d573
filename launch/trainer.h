// Training on ranks, data-parallel and expert-parallel. train_step (trainer.cpp) reads as the
// algorithm; everything around it is what an unattended job needs: going on from a checkpoint bit
// for bit, requests to stop, the log.
#pragma once

#include <ATen/core/Tensor.h>

#include <filesystem>
#include <memory>
#include <optional>

#include "data/image_set.h"
#include "data/loader.h"
#include "dist/exchange.h"
#include "dist/gradient_reducer.h"
#include "dist/step_plan.h"
#include "dist/world.h"
#include "launch/checkpoint.h"
#include "launch/config.h"
#include "launch/micro_batch.h"
#include "launch/step_totals.h"
#include "launch/stop_request.h"
#include "model/denoiser.h"
#include "model/diffusion.h"
#include "model/optimizer.h"
#include "model/spike_activity.h"
#include "monitoring/run_log.h"
#include "monitoring/step_record.h"

namespace laterna::launch {

/// The data set that a configuration trains on, data.path. Throws UsageError when it is not set or
/// holds images of another shape than the model's; data::InputError as ImageSet::open does.
data::ImageSet open_images(const Config& config);

/// Collective: forms the groups that config.parallel.expert asks for. Throws CollectiveError when
/// it does not divide the ranks.
void form_groups(dist::World& world, const Config& config);

inline constexpr std::int64_t kMostSkipped = 5;

/// The model of a training run on this rank, and one step of it. Collective throughout.
class Trainer {
 public:
  /// The world's groups are formed for config.parallel.expert; computes on the world's device.
  Trainer(const Config& config, const data::ImageSet& images, dist::World& world);

  /// Goes on behind `step` (already loaded into state()): starts the loader there.
  void start(std::int64_t step);
  /// One step; nothing when ranks agreed to stop before it was done, which leaves no trace of it. A
  /// step whose loss or gradient is not finite updates nothing, on any rank. Throws CollectiveError
  /// on all ranks when kMostSkipped in a row were such, or when ranks no longer hold the same
  /// weights.
  std::optional<monitoring::StepRecord> train_step(StopRequest& stop);

  TrainingState state() { return {step_, parameters_, optimizer_}; }
  const model::Parameters& parameters() const { return parameters_; }

 private:
  std::vector<std::int64_t> image_shape() const;
  dist::StepPlan plan();
  bool accumulate_all(StopRequest& stop, data::Batch& batch, const dist::StepPlan& plan,
                      StepTotals& totals);
  void accumulate(const at::Tensor& x0, const model::Draws& draws, const dist::MicroBatchPlan* plan,
                  const model::SpikeProbe& probe, StepTotals& totals);
  void reduce(StepTotals& totals);
  void update(double norm, bool finite, const StepTotals& totals);
  [[noreturn]] void fail_not_finite(double norm, const StepTotals& totals);
  void check_replicas();
  std::vector<monitoring::Phase> phases() const;

  Config config_;
  const data::ImageSet& images_;
  dist::World& world_;
  Share share_;                       // as many samples this rank takes...
  std::vector<std::int64_t> counts_;  // [EP] ...and each rank of its group...
  Share group_share_;                 // ...of those that the group takes
  std::int64_t micro_batch_, micro_batches_;
  dist::Exchange exchange_;
  model::ExpertGroup group_;
  model::Parameters parameters_;
  model::Denoiser denoiser_;
  model::Diffusion diffusion_;
  model::Optimizer optimizer_;
  dist::GradientReducer reducer_;             // of what every rank holds
  dist::GradientReducer candidates_reducer_;  // over the replica group
  std::unique_ptr<data::Loader> loader_;
  std::int64_t step_ = 0;
  std::int64_t skipped_ = 0;  // steps in a row

  /// Of the step under way, in seconds.
  struct {
    double data = 0, plan = 0, forward = 0, backward = 0, reduce = 0, optimizer = 0;
    double agreeing = 0;  // waiting for the other ranks' answers
  } spent_;
  std::optional<model::SpikeActivity> watched_;  // of a step that looks at its spikes
  std::int64_t next_look_ = 0;                   // the first step from here on looks again
};

}  // namespace laterna::launch
