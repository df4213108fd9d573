// What a step will send where, known before its forward pass begins: routing is a function of t_d
// alone (spec, end of section 1), so one small all-gather of the choices tells every rank of an
// expert-parallel group every count, place and order of every exchange of the step, forward and
// backward. No counts travel later, nothing is padded, nothing dropped.
//
// A plan is a plain value: it can be printed, compared, and made without ranks.
//
// EP ranks of the group; T spiking steps; N candidates; H of them held here; B samples of a
// micro-batch here, `total` over the group, numbered rank by rank. A block is one sample's tokens
// at one step.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <string>
#include <vector>

#include "dist/communicator.h"
#include "dist/placement.h"

namespace laterna::dist {

/// The candidates that a layer selects for each sample, and their weights.
struct Choices {
  std::int64_t layer = 0;
  at::Tensor mask;  // uint8 [T, samples, N] on the CPU: 1 where selected
  at::Tensor gate;  // [T, samples, N] on the CPU, float32 or float64: the weight where selected
};

/// What one rank does for one selecting layer in one micro-batch. Blocks that travel lie by step,
/// then by the other rank, then by sample; a block that several candidates of a rank want travels
/// once.
struct LayerPlan {
  std::int64_t layer = 0;
  std::int64_t samples = 0;                          // of the micro-batch over the group: `total`
  std::vector<std::int64_t> held;                    // the candidates held here, ascending
  std::vector<std::uint8_t> local;                   // [T, B, H] local assignments
  std::vector<std::int64_t> sent;                    // [S] local blocks t * B + b that are sent
  std::vector<std::int64_t> received;                // [R] blocks t * total + sample that arrive
  std::vector<std::uint8_t> remote;                  // [R, H] remote assignments
  std::vector<std::vector<std::int64_t>> send_rows;  // [T][EP] blocks to each rank
  std::vector<std::vector<std::int64_t>> receive_rows;  // [T][EP] blocks from each rank
  bool operator==(const LayerPlan&) const = default;
};

/// First row of each step among rows that lie step by step, and behind the last: [T + 1].
std::vector<std::int64_t> row_offsets(const std::vector<std::vector<std::int64_t>>& rows);

/// `choices` of all samples of a micro-batch of the group (gates unused); rank e's are samples
/// offsets[e] .. offsets[e+1]-1. Of replicas of a candidate the sample's own rank serves it, else
/// the sample's number picks one, the same at every spiking step: the membranes are there.
LayerPlan plan_layer(const Placement& placement, std::int64_t rank, const Choices& choices,
                     const std::vector<std::int64_t>& offsets);

/// A micro-batch of a step on one rank.
struct MicroBatchPlan {
  std::vector<LayerPlan> layers;  // the selecting layers in order
  std::vector<at::Tensor> gates;  // of each layer, [R, H]: the weights of remote assignments
};

/// A step on one rank.
struct StepPlan {
  std::vector<std::int64_t>
      samples;  // that this rank takes, numbers in the group's batch, ascending
  std::vector<MicroBatchPlan> micro_batches;
};

/// Whether samples stay where they are, or go where the step is estimated to be shortest
/// (dist/sample_placement.h).
enum class Placing { consecutive, by_time };

/// Places the group's samples and cuts each rank's into `micro_batches` of `micro_batch` samples.
/// Collective over `group` (one all-gather). `counts` [EP]: how many samples each rank has; `mine`:
/// the choices of this rank's counts[rank] consecutive ones, the same layers on all ranks.
StepPlan plan_step(Communicator& group, const Placement& placement,
                   const std::vector<Choices>& mine, const std::vector<std::int64_t>& counts,
                   std::int64_t micro_batch, std::int64_t micro_batches,
                   Placing placing = Placing::by_time);

/// A line a layer and micro-batch: who sends how many blocks to whom.
std::string to_text(const std::vector<MicroBatchPlan>& micro_batches);

}  // namespace laterna::dist
