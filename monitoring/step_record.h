// The plain facts of one training step: what the log keeps, the progress line shows, and metrics
// and TensorBoard are made of. Who measures fills it in; nobody else computes anything here.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace laterna::monitoring {

/// A transfer of the exchange over all ranks.
struct Transfer {
  std::string name;
  std::int64_t blocks = 0, bytes = 0;
  double wait_seconds = 0;  // not hidden behind work, mean over the ranks
};

/// A part of the step on rank 0: data, plan, forward, backward, reduce, optimizer.
struct Phase {
  std::string name;
  double seconds = 0;
};

/// What one rank says of itself.
struct RankFacts {
  double step_seconds = 0;        // its own work: without waiting for the others
  std::int64_t memory_bytes = 0;  // resident
};

/// The lateral connection of a selecting layer (eqs 10-12).
struct LateralFacts {
  std::int64_t layer = 0;
  double gamma = 0, threshold = 0;
  double offdiagonal_sum = 0, trace = 0;  // of Lambda
};

/// The share of a layer's neurons at a site (input, q, k, v, attention, z, hidden) that fire.
struct SpikeRate {
  std::int64_t layer = 0;
  std::string site;
  double ratio = 0;
};

struct StepRecord {
  std::int64_t step = 0;     // steps done, this one included
  std::int64_t samples = 0;  // the global batch
  double loss = 0;           // mean squared error over the global batch
  double grad_norm = 0;      // before clipping, over all parameters
  bool skipped = false;      // loss or norm is not finite: nothing was updated, on any rank
  double learning_rate = 0;
  double samples_per_second = 0;
  double seconds = 0;                     // the whole step
  double data_wait_seconds = 0;           // of them, waiting for the loader
  double communication_wait_seconds = 0;  // of them, waiting for gradients not hidden by backward
  std::vector<Phase> phases;
  std::vector<RankFacts> ranks;
  /// Of the selecting layers in order, for each candidate: assignments (a sample at a spiking
  /// step).
  std::vector<std::vector<std::int64_t>> assignments;
  std::vector<std::int64_t> selecting_layers;  // the layers that `assignments` is of
  std::vector<Transfer>
      exchange;          // the exchange between expert-parallel ranks; empty where EP is 1
  double imbalance = 1;  // assignments served by the busiest rank over the mean
  /// Looked at every so many steps; empty at the others.
  std::vector<LateralFacts> lateral;
  std::vector<SpikeRate> spike_rates;
};

/// What an evaluation of the averaged weights found.
struct EvaluationRecord {
  std::int64_t step = 0;
  std::int64_t samples = 0;
  double fid = 0, fid_low = 0, fid_high = 0;  // with the bootstrap's 95% interval
  double fid_infinity = 0;                    // extrapolated to infinitely many samples
  double kid = 0, kid_deviation = 0;          // mean over subsets, and its standard deviation
  double precision = 0, recall = 0;
  // How a classifier names the images and, beside them, real ones that it was not trained on
  // (monitoring/naming.h); NaN where the network is no classifier.
  double named_share = 0, named_share_real = 0;
  double effective_classes = 0, effective_classes_real = 0;
  double images_per_second = 0;
};

/// Calls f(name, value) with each figure of it, by the names that the log, TensorBoard and the
/// program's output have for them.
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

/// What saving a checkpoint took.
struct CheckpointRecord {
  std::int64_t step = 0, bytes = 0;
  double snapshot_seconds = 0;  // training stood still
  double write_seconds = 0;     // behind training: the slowest writer
  double commit_seconds = 0;    // from the last writer's end to the manifest on disk
};

}  // namespace laterna::monitoring
