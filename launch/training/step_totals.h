// The totals of a training step over all ranks, summed in one small collective: the loss and the
// sum of squares of the candidates' gradients, which training needs, and the load and traffic that
// the step record reports.
#pragma once

#include <array>
#include <cstdint>
#include <vector>

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

  double loss = 0;                // this rank's part; after sum() the global batch's
  double candidates_squares = 0;  // this rank's candidates' squared gradients; then all ranks'
  monitoring::RankFacts mine;     // step time and memory of this rank
  /// Counts the assignments of this rank's samples, by selecting layer and candidate.
  void add(const model::Routing& routing);
  /// Counts the local and remote assignments that this rank computes.
  void add(const dist::MicroBatchPlan& plan);

  /// Collective. Sums over all ranks; candidates_squares counts once per replica group.
  void sum();
  /// Fills in the load and traffic of `record`; call it after sum().
  void fill(monitoring::StepRecord& record) const;

 private:
  /// Calls f(number) with every number that is summed over the ranks, in the same order each time.
  template <typename Function>
  void for_each_sum(const Function& f);

  dist::World& world_;
  const dist::Exchange& exchange_;
  std::array<dist::Traffic, 4> before_;
  std::int64_t candidates_;
  std::vector<std::vector<double>> assignments_;  // [selecting layers][N]
  std::vector<double> served_;                    // [ranks] assignments that each computes
  std::vector<std::int64_t> selecting_;           // the selecting layers
  std::vector<monitoring::RankFacts> ranks_;
  std::array<dist::Traffic, 4> traffic_{};
};

}  // namespace laterna::launch
