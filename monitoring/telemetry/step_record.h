// Plain records of a training step, an evaluation and a checkpoint, from which the log, the
// progress line, metrics and TensorBoard are made. The code that measures fills them in; no code
// derives further values here.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace laterna::monitoring {

/// One of the four transfers of the expert-parallel exchange in a step: token blocks and bytes that
/// all ranks together have sent.
struct Transfer {
  std::string name;
  std::int64_t blocks = 0, bytes = 0;
  double wait_seconds = 0;  // not hidden behind computation, mean over the ranks
};

/// A phase of the step on rank 0: data, plan, forward, backward, reduce, optimizer.
struct Phase {
  std::string name;
  double seconds = 0;
};

/// What one rank reports about itself.
struct RankFacts {
  double step_seconds = 0;        // work of this rank, without waiting for other ranks
  std::int64_t memory_bytes = 0;  // resident
  std::int64_t assignments = 0;   // that it computed, of its own samples and of other ranks'
};

/// Of a number that each rank has, the least, the middle (of two, the lower) and the greatest.
struct Spread {
  double min = 0, median = 0, max = 0;
};

/// State of the lateral connection of a selecting layer (eqs 10-12).
struct LateralFacts {
  std::int64_t layer = 0;
  double gamma = 0, threshold = 0;
  double offdiagonal_sum = 0, trace = 0;  // of Lambda
};

/// Share of a layer's neurons at a site (input, q, k, v, attention, z, hidden) that fire.
struct SpikeRate {
  std::int64_t layer = 0;
  std::string site;
  double ratio = 0;
};

struct StepRecord {
  std::int64_t step = 0;     // number of steps done, including this one
  std::int64_t samples = 0;  // the global batch
  double loss = 0;           // mean squared error over the global batch
  double grad_norm = 0;      // before clipping, over all parameters
  bool skipped = false;      // loss or norm not finite: no rank updated its weights
  double learning_rate = 0;
  double samples_per_second = 0;
  double seconds = 0;                     // the whole step
  double data_wait_seconds = 0;           // part of `seconds`: waiting for the data loader
  double communication_wait_seconds = 0;  // part of `seconds`: exposed gradient reduction
  std::vector<Phase> phases;
  std::vector<RankFacts> ranks;
  Spread rank_seconds, rank_memory_bytes;  // of `ranks`
  std::int64_t slowest_rank = 0;           // the first of those that computed longest
  /// [selecting layers][candidates]: number of assignments (one sample at one spiking step).
  std::vector<std::vector<std::int64_t>> assignments;
  std::vector<std::int64_t> selecting_layers;  // layer of each row of `assignments`
  std::vector<Transfer> exchange;              // empty where EP is 1
  double imbalance = 1;  // assignments computed by the busiest rank over the mean
  /// Recorded only every kLookSteps steps (launch/training/trainer.cpp); otherwise empty.
  std::vector<LateralFacts> lateral;
  std::vector<SpikeRate> spike_rates;
};

/// Figures of an evaluation of the averaged weights.
struct EvaluationRecord {
  std::int64_t step = 0;
  std::int64_t samples = 0;
  double fid = 0, fid_low = 0, fid_high = 0;  // with the 95% bootstrap interval
  double fid_infinity = 0;                    // extrapolated to infinitely many samples
  double kid = 0, kid_deviation = 0;          // mean and standard deviation over subsets
  double precision = 0, recall = 0;
  // How a classifier names the generated images and, for comparison, real ones that it was not
  // trained on (monitoring/quality/naming.h); NaN where the network is not a classifier.
  double named_share = 0, named_share_real = 0;
  double effective_classes = 0, effective_classes_real = 0;
  double images_per_second = 0;
};

/// Calls f(name, value) for each figure of an EvaluationRecord, with the names that the log,
/// TensorBoard and the program's output use.
template <typename Record, typename Function>
void for_each_figure(Record& r, const Function& f) {
  f("samples", r.samples);
  f("fid", r.fid);
  f("fid_low", r.fid_low);
  f("fid_high", r.fid_high);
  f("fid_infinity", r.fid_infinity);
  f("kid", r.kid);
  f("kid_deviation", r.kid_deviation);
  f("precision", r.precision);
  f("recall", r.recall);
  f("named_share", r.named_share);
  f("named_share_real", r.named_share_real);
  f("effective_classes", r.effective_classes);
  f("effective_classes_real", r.effective_classes_real);
  f("images_per_second", r.images_per_second);
}

/// Size of a checkpoint and the time that saving it took.
struct CheckpointRecord {
  std::int64_t step = 0, bytes = 0;
  double snapshot_seconds = 0;  // training paused
  double write_seconds = 0;     // in the background: the slowest writer
  double commit_seconds = 0;    // from the end of the last writer to the manifest on disk
};

}  // namespace laterna::monitoring
