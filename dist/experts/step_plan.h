// What each rank sends to which rank in a training step, known before its forward pass begins:
// routing is a function of the diffusion step t_d only (spec, end of section 1), so one small
// all-gather of the routing tells every rank of an expert-parallel group every count, position and
// order of every transfer of the step, forward and backward. No counts are sent later, nothing is
// padded, nothing is dropped.
//
// A plan is a plain value: it can be printed, compared, and computed without ranks.
//
// EP: ranks of the group; T: spiking steps; N: candidates; H: candidates held on this rank; B:
// samples of a micro-batch on this rank; `total`: samples of the micro-batch over the group,
// numbered rank by rank. A token block is one sample's tokens at one spiking step.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <string>
#include <vector>

#include "dist/comm/communicator.h"
#include "dist/experts/placement.h"

namespace laterna::dist {

struct LayerPlan;

/// What one selecting layer selects for a batch of B samples (eqs 9-12).
struct LayerRouting {
  std::int64_t layer = 0;
  at::Tensor probability;  // [T, B, N] P before the mask, float32 or float64; carries gradients
  at::Tensor mask;         // uint8 [T, B, N] on the CPU: 1 where selected, k per row
  /// Where the candidates are distributed over ranks, this rank's part of the layer; it must
  /// outlive the backward pass. Otherwise null.
  const LayerPlan* plan = nullptr;
};

/// One entry per selecting layer, in order.
using Routing = std::vector<LayerRouting>;

/// What one rank does for one selecting layer in one micro-batch. Transferred token blocks are
/// ordered by spiking step, then by the other rank, then by sample; a block that several candidates
/// of a rank need is sent to that rank once.
struct LayerPlan {
  std::int64_t layer = 0;
  std::int64_t samples = 0;            // of the micro-batch over the group: `total`
  std::vector<std::int64_t> held;      // candidates held on this rank, ascending
  std::vector<std::uint8_t> local;     // [T, B, H] 1: a local assignment
  std::vector<std::int64_t> sent;      // [S] local token blocks t * B + b that are sent
  std::vector<std::int64_t> received;  // [R] token blocks t * total + sample, received
  std::vector<std::uint8_t> remote;    // [R, H] 1: a remote assignment
  std::vector<double> gates;           // [R, H] P of the received token blocks
  std::vector<std::vector<std::int64_t>> send_rows;     // [T][EP] blocks to each rank
  std::vector<std::vector<std::int64_t>> receive_rows;  // [T][EP] blocks from each rank
  bool operator==(const LayerPlan&) const = default;
};

/// Returns the first row of each step among rows that are stored step by step, and last the total
/// number of rows: [T + 1].
std::vector<std::int64_t> row_offsets(const std::vector<std::vector<std::int64_t>>& rows);

/// Returns the plan of `rank` for one layer. `routing`: of all samples of the group's micro-batch;
/// rank e's samples are offsets[e] .. offsets[e+1]-1. Among replicas of a candidate the sample's
/// own rank computes it if it is one of them, otherwise the sample's number picks one, the same at
/// every spiking step because that rank holds the membranes.
LayerPlan plan_layer(const Placement& placement, std::int64_t rank, const LayerRouting& routing,
                     const std::vector<std::int64_t>& offsets);

/// The plans of the selecting layers, in order, for one micro-batch on one rank; empty where every
/// rank holds all candidates.
using MicroBatchPlan = std::vector<LayerPlan>;

/// Lets each entry of `routing` refer to its layer's plan, if there are plans. Throws c10::Error
/// where their number is not that of the layers.
void attach(Routing& routing, const MicroBatchPlan& plan);

/// The plan of one step on one rank.
struct StepPlan {
  std::vector<std::int64_t> samples;  // of this rank, as numbers in the group's batch, ascending
  std::vector<MicroBatchPlan> micro_batches;
};

/// Whether ranks take consecutive samples, or those with which the step is estimated to be shortest
/// (dist/experts/sample_placement.h).
enum class Placing { consecutive, by_time };

/// Places the group's samples on its ranks and splits the samples of each rank into `micro_batches`
/// of `micro_batch` samples. Collective over `group` (one all-gather). `counts` [EP]: the number of
/// samples of each rank; `mine`: the routing of this rank's counts[rank] consecutive samples, for
/// the same layers on all ranks, or empty where every rank holds all candidates.
StepPlan plan_step(Communicator& group, const Placement& placement, const Routing& mine,
                   const std::vector<std::int64_t>& counts, std::int64_t micro_batch,
                   std::int64_t micro_batches, Placing placing = Placing::by_time);

/// Returns one line per layer and micro-batch: how many token blocks this rank sends to and
/// receives from each rank at each spiking step.
std::string to_text(const std::vector<MicroBatchPlan>& micro_batches);

}  // namespace laterna::dist
