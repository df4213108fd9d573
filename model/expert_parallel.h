// A layer's candidates spread over the ranks of an expert-parallel group: spikes go out to where a
// sample's candidates are, weighted sums come back (eq 13). One autograd node a layer, covering all
// spiking steps and present on every rank, also on one without samples or assignments: autograd
// never decides whether a rank communicates.
//
// What flies meanwhile: own samples are worked on after blocks went out and before guests' are
// waited for; guests' blocks are multiplied step by step as they arrive, and each step's sums leave
// while the next step's are formed. The backward pass goes the same way.
#pragma once

#include <ATen/core/Tensor.h>

#include "dist/exchange.h"
#include "dist/placement.h"
#include "model/candidates.h"

namespace laterna::model {

/// This rank's place in its expert-parallel group.
struct ExpertGroup {
  dist::Placement placement;
  std::int64_t rank;
  dist::Exchange& exchange;  // outlives every backward pass of what was computed with it
};

/// sum_j h_j S_j of this rank's samples, as Candidates::forward, wherever the candidates are.
/// Collective over the group. `held`: this rank's candidates; plan and gates: this layer's of the
/// round, which outlive the backward pass. `probe` sees the spikes inside the candidates, of own
/// samples' assignments and of others'.
at::Tensor forward_on_ranks(const Candidates& held, const Spikes& z, const LayerRouting& routing,
                            const dist::LayerPlan& plan, const at::Tensor& gates,
                            dist::Exchange& exchange, const SpikeProbe& probe = {});

}  // namespace laterna::model
