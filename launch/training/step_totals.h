// The record of a training step in the making: each rank counts its own part, and one small
// collective at the end of the step sums the parts over all ranks. With them it sums the squares of
// the candidates' gradients, which the clipping norm needs.
#pragma once

#include <array>

#include "dist/experts/exchange.h"
#include "dist/experts/step_plan.h"
#include "dist/world.h"
#include "launch/config.h"
#include "model/router.h"
#include "monitoring/telemetry/step_record.h"

namespace laterna::launch {

class StepTotals {
 public:
  /// Begins a step: traffic that `exchange` carried before does not count.
  StepTotals(const Config& config, dist::World& world, const dist::Exchange& exchange);

  /// This rank's part of the step's numbers (monitoring::for_each_sum); after sum() the whole.
  monitoring::StepRecord record;
  /// Squared gradient norm of this rank's candidates; after sum() of all candidates.
  double candidates_squares = 0;

  /// Returns what this rank reports about itself: its element of record.ranks.
  monitoring::RankFacts& mine();
  /// Counts the assignments of this rank's samples, by selecting layer and candidate.
  void add(const model::Routing& routing);
  /// Counts the local and remote assignments that this rank computes.
  void add(const dist::MicroBatchPlan& plan);

  /// Collective. Sums over all ranks; candidates_squares counts once per replica group.
  void sum();

 private:
  dist::World& world_;
  const dist::Exchange& exchange_;
  std::array<dist::Traffic, 4> before_;
};

}  // namespace laterna::launch
