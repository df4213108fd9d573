// The facts of a training step that ranks add up, in one small collective: the loss and the square
// sum of the candidates' gradients, which training needs, and what the step record tells of load
// and traffic.
#pragma once

#include <array>
#include <cstdint>
#include <vector>

#include "dist/exchange.h"
#include "dist/step_plan.h"
#include "dist/world.h"
#include "launch/config.h"
#include "model/router.h"
#include "monitoring/step_record.h"

namespace laterna::launch {

class StepTotals {
 public:
  /// Begins a step: what `exchange` has carried before does not count.
  StepTotals(const Config& config, dist::World& world, const dist::Exchange& exchange);

  double loss = 0;                // this rank's part, then the global batch's
  double candidates_squares = 0;  // of this rank's candidates' gradients, then of all candidates'
  monitoring::RankFacts mine;     // what this rank tells of itself
  /// What this rank's samples chose.
  void add(const model::Routing& routing);
  /// What this rank computes for whom.
  void add(const dist::MicroBatchPlan& plan);

  /// Collective: sums over ranks; of the ranks that hold the same candidates the first counts.
  void sum();
  /// After sum(): load and traffic.
  void fill(monitoring::StepRecord& record) const;

 private:
  dist::World& world_;
  const dist::Exchange& exchange_;
  std::array<dist::Traffic, 4> before_;
  std::int64_t candidates_;
  std::vector<std::vector<double>> assignments_;  // [selecting layers][N]
  std::vector<double> served_;                    // [ranks] assignments computed by each
  std::vector<std::int64_t> selecting_;           // layers
  std::vector<monitoring::RankFacts> ranks_;
  std::array<dist::Traffic, 4> traffic_{};
};

}  // namespace laterna::launch
