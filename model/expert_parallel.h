// A layer whose candidates are distributed over the ranks of an expert-parallel group (eq 13):
// spikes are dispatched to the ranks that hold a sample's candidates, and weighted sums are
// combined on the sample's rank. A layer is one autograd node that covers all spiking steps and
// exists on every rank, even on one without samples or assignments, so that autograd never decides
// whether a rank communicates.
//
// Computation overlaps the transfers: a rank computes its local assignments after sending its token
// blocks and before waiting for remote ones. Received token blocks are multiplied step by step as
// they arrive, and the sums of each step are sent while those of the next step are computed. The
// backward pass overlaps in the same way.
#pragma once

#include <ATen/core/Tensor.h>

#include "dist/experts/exchange.h"
#include "dist/experts/placement.h"
#include "model/candidates.h"

namespace laterna::model {

/// An expert-parallel group, as one of its ranks sees it.
struct ExpertGroup {
  dist::Placement placement;
  std::int64_t rank;
  dist::Exchange& exchange;  // must outlive every backward pass of what was computed with it
};

/// Returns sum_j h_j S_j for this rank's samples, as Candidates::forward does, whichever ranks hold
/// the candidates. Collective over the group. `held`: this rank's candidates; `routing`: with its
/// plan. `probe` is called with the spikes inside the held candidates, of local and of remote
/// assignments. Where products are rounded to bfloat16, so are the sums and gradients that are
/// sent.
at::Tensor forward_on_ranks(const Candidates& held, const Spikes& z, const LayerRouting& routing,
                            dist::Exchange& exchange, const SpikeProbe& probe = {});

}  // namespace laterna::model
