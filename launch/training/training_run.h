// A training run from its start or resumption to its end, on every rank: trains step by step, saves
// and evaluates when the coordinator on rank 0 decides so, and saves once more when training is
// done or the ranks agree to stop.
#pragma once

#include <cstdint>
#include <memory>

#include "launch/checkpoint/checkpoint_writer.h"
#include "launch/evaluation/evaluation.h"
#include "launch/training/coordinator.h"
#include "launch/training/run_folder.h"
#include "launch/training/stop_request.h"
#include "launch/training/trainer.h"

namespace laterna::launch {

class TrainingRun {
 public:
  /// Collective. Loads the newest intact checkpoint of the run, if there is one. Needs groups
  /// formed by form_groups(); the arguments outlive this object. Throws CollectiveError, and
  /// StopAgreed when the ranks agree to stop while the features of the evaluation's reference are
  /// computed.
  TrainingRun(dist::World& world, const Config& config, RunFolder& folder,
              const data::ImageSet& images, StopRequest& stop);
  /// Collective. Trains to the last step, or until the ranks agree to stop. Returns the exit
  /// status.
  int run();

 private:
  void introduce(const data::ImageSet& images) const;
  void train_until_stopped();
  void follow_coordinator();
  void save();
  void save_at_the_end();
  void evaluate();

  dist::World& world_;
  const Config& config_;
  RunFolder& folder_;
  StopRequest& stop_;
  std::unique_ptr<Evaluator> evaluator_;  // null without evaluations
  Trainer trainer_;
  std::int64_t start_, step_;
  std::unique_ptr<Coordinator> coordinator_;  // on rank 0
  std::unique_ptr<CheckpointWriter> writer_;
  Saved last_save_{};
};

}  // namespace laterna::launch
