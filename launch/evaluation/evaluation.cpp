#include "launch/evaluation/evaluation.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <future>

#include "data/error.h"
#include "data/files/sha256.h"
#include "data/host.h"
#include "dist/agreement.h"
#include "launch/collective.h"
#include "launch/evaluation/sampling.h"
#include "launch/pixels.h"
#include "model/diffusion.h"
#include "monitoring/quality/frechet_errors.h"
#include "monitoring/quality/kernel_distance.h"
#include "monitoring/quality/manifold.h"
#include "monitoring/quality/one_thread_each.h"
#include "monitoring/telemetry/progress.h"

namespace laterna::launch {
namespace {

using data::seconds_since;

namespace fs = std::filesystem;
using Clock = std::chrono::steady_clock;

constexpr std::int64_t kKeptFeatures = 10000;  // of the reference, for KID, precision and recall

/// Collective. Returns the rows of all ranks, in rank order, on rank 0, and [0, d] on other ranks.
/// rows[r]: the number of rows of rank r.
at::Tensor to_first_rank(dist::World& world, const at::Tensor& mine,
                         const std::vector<std::int64_t>& rows) {
  std::vector<std::int64_t> send(rows.size()), receive(rows.size());
  send[0] = mine.size(0);
  std::int64_t all = 0;
  if (world.rank() == 0) {
    receive = rows;
    for (const auto count : rows) all += count;
  }
  const at::Tensor gathered = at::empty({all, mine.size(1)}, mine.options());
  world.control().all_to_all_v(mine.contiguous(), send, gathered, receive)->wait();
  return gathered;
}

/// Returns whether the reference is a statistics file rather than a data set folder.
bool is_file(const std::string& reference) { return fs::path(reference).extension() == ".npz"; }

monitoring::StatisticsFacts facts_of(const data::ImageSet& images,
                                     const monitoring::FeatureExtractor& extractor) {
  return {images.sha256(), images.split(), monitoring::to_text(extractor.shape()),
          extractor.sha256()};
}

/// Returns at most `count` rows, evenly spread.
at::Tensor some_rows(const at::Tensor& features, std::int64_t count) {
  if (features.size(0) <= count) return features;
  const at::Tensor places = at::arange(count, at::kLong).mul(features.size(0)).div(count, "floor");
  return features.index_select(0, places);
}

}  // namespace

monitoring::ImageShape image_shape(const Config& config) {
  const auto& m = config.model;
  return {m.channels, m.image_size, m.image_size};
}

Evaluator::Evaluator(const EvaluatorOptions& options, const monitoring::ImageShape& shape,
                     dist::World& world, StopRequest* stop)
    : options_(options), world_(world) {
  run_collectively(world, [&] { open(shape); });
  const auto others = dist::ranks_that_differ(
      world.control(), extractor_->sha256() + (images_ ? images_->sha256() : ""));
  if (!others.empty()) {
    throw CollectiveError(
        3, fmt::format("{} or {}: rank {} reads a different file than rank 0; give paths on a file "
                       "system that all hosts share",
                       extractor_->path().string(), options_.reference, others.front()));
  }
  if (images_) {
    reference_sha256_ = images_->sha256();
    const auto kept =
        images_->folder() / fmt::format("statistics-{}.npz", extractor_->sha256().substr(0, 12));
    bool found = false;
    run_collectively(world, [&] { found = world.rank() == 0 && read_kept_statistics(kept); });
    if (broadcast_from_root(world, found) == 0) make_statistics(kept, stop);
  } else {
    run_collectively(world, [&] {
      if (world.rank() == 0) read_reference();
    });
  }
  on_first_rank(stop, [&] { prepared_.emplace(reference_.statistics); });
  description_ = fmt::format("{}, extractor {} ({} features)",
                             images_ ? fmt::format("{} of {} ({} images)", images_->split(),
                                                   images_->name(), images_->count())
                                     : options_.reference,
                             extractor_->name(), extractor_->dimension());
}

void Evaluator::open(const monitoring::ImageShape& shape) {
  if (!is_file(options_.reference)) {
    images_ = std::make_unique<data::ImageSet>(data::ImageSet::open(options_.reference));
    const monitoring::ImageShape found{images_->channels(), images_->height(), images_->width()};
    if (!(found == shape)) {
      throw data::InputError(fmt::format(
          "{}: its images are {}, but those to evaluate are {} (channels, height, width); give a "
          "reference of the same size in evaluation.reference (--reference)",
          options_.reference, monitoring::to_text(found), monitoring::to_text(shape)));
    }
  }
  extractor_ = monitoring::FeatureExtractor::open(extractor_path(), shape);
  if (options_.samples < monitoring::kLeastSamples) {
    throw UsageError(
        fmt::format("{} images are too few to evaluate; use at least {} (evaluation.samples, "
                    "--samples)",
                    options_.samples, monitoring::kLeastSamples));
  }
  if (options_.samples > extractor_->dimension() || options_.force) return;
  throw UsageError(fmt::format(
      "{} images are too few for a network of {} features: their covariance is singular and FID "
      "means little; use more than {} (evaluation.samples; in `laterna evaluate` --samples, or "
      "--force to evaluate anyway)",
      options_.samples, extractor_->dimension(), extractor_->dimension()));
}

fs::path Evaluator::extractor_path() const {
  if (options_.extractor != "builtin") return options_.extractor;
  if (!images_) {
    throw UsageError(
        fmt::format("{}: a statistics file has no built-in extractor; name the network that it was "
                    "made with in evaluation.extractor (--extractor)",
                    options_.reference));
  }
  const fs::path path = images_->folder() / "features.h5";
  if (fs::exists(path)) return path;
  throw data::InputError(fmt::format(
      "{}: the built-in extractor of this data set is missing; make it with `laterna features "
      "train --data {} --output {}`, or name another network in evaluation.extractor (--extractor)",
      path.string(), options_.reference, path.string()));
}

/// Reads a statistics file as the reference and checks that it fits; on rank 0.
void Evaluator::read_reference() {
  reference_ = monitoring::read_statistics(options_.reference);
  reference_sha256_ = data::sha256_of_file(options_.reference);
  monitoring::StatisticsFile ours;
  ours.facts.size = monitoring::to_text(extractor_->shape());
  ours.facts.extractor_sha256 = extractor_->sha256();
  ours.statistics.mean = at::zeros({extractor_->dimension()}, at::kDouble);
  const auto differ = monitoring::comparison_differences(reference_, ours);
  if (differ.empty()) return;
  throw data::InputError(fmt::format("{}: does not fit the images and the extractor: {}",
                                     options_.reference, fmt::join(differ, "; ")));
}

/// Reads the statistics that the data set's folder keeps; false if there are none. On rank 0.
bool Evaluator::read_kept_statistics(const fs::path& path) {
  if (!fs::exists(path)) return false;
  reference_ = monitoring::read_statistics(path);
  const auto differ = monitoring::differences(reference_.facts, facts_of(*images_, *extractor_));
  if (differ.empty()) return true;
  throw data::InputError(fmt::format(
      "{}: was not made from this data set and extractor: {}; remove it to recompute it",
      path.string(), fmt::join(differ, "; ")));
}

void Evaluator::make_statistics(const fs::path& path, StopRequest* stop) {
  const at::Tensor features = features_of(*images_, "reference image", stop);
  on_first_rank(stop, [&] { reference_.statistics = monitoring::statistics_of(features); });
  run_collectively(world_, [&] {
    if (world_.rank() != 0) return;
    reference_.facts = facts_of(*images_, *extractor_);
    reference_.features = some_rows(features, kKeptFeatures).clone();
    try {
      monitoring::write_statistics(path, reference_);
    } catch (const data::WriteError& error) {  // the data set may be read-only
      fmt::print(stderr, "warning: {}; the next evaluation computes the statistics again\n",
                 error.what());
    }
  });
}

/// Collective. Runs a long computation on a separate thread of rank 0, while this thread keeps the
/// heartbeat going. Not for work that waits for a disk, whose hang the heartbeat would hide.
void Evaluator::on_first_rank(StopRequest* stop, const std::function<void()>& work) {
  run_collectively(world_, [&] {
    if (world_.rank() != 0) return;
    auto task = std::async(std::launch::async, work);
    while (task.wait_for(std::chrono::seconds(1)) != std::future_status::ready) {
      world_.heartbeat().touch();
    }
    task.get();
  });
  if (stop) stop->obey();
}

/// Collective. Returns the features [n, d] on rank 0. Ranks take batches of images in turn, one
/// chunk per thread, so that none takes long. The pixels are verified first, because statistics are
/// kept under their hash.
at::Tensor Evaluator::features_of(const data::ImageSet& images, const char* what,
                                  StopRequest* stop) {
  const auto scope = world_.heartbeat().enter("computing features of a data set");
  run_collectively(world_, [&] {
    if (world_.rank() == 0) images.verify([&] { world_.heartbeat().touch(); });
  });
  std::unique_ptr<monitoring::Progress> progress;
  if (world_.rank() == 0) progress = std::make_unique<monitoring::Progress>(what, images.count());
  const auto began = Clock::now();
  const std::int64_t length =
      broadcast_from_root(world_, at::get_num_threads()) * monitoring::FeatureExtractor::kChunk;
  const auto count_of = [&](std::int64_t block) {
    return std::clamp<std::int64_t>(images.count() - block * length, 0, length);
  };
  std::vector<at::Tensor> parts;
  for (std::int64_t first = 0; first * length < images.count(); first += world_.size()) {
    if (stop) stop->obey();
    world_.heartbeat().touch();
    std::vector<std::int64_t> rows;
    for (int rank = 0; rank < world_.size(); ++rank) rows.push_back(count_of(first + rank));
    const std::int64_t block = first + world_.rank();
    const std::int64_t count = rows[static_cast<std::size_t>(world_.rank())];
    at::Tensor mine = at::empty({0, extractor_->dimension()}, at::kFloat);
    run_collectively(world_, [&] {
      if (count == 0) return;
      mine = extractor_->features(pixels_of(images, block * length, count));
    });
    parts.push_back(to_first_rank(world_, mine, rows));
    if (progress) {
      const std::int64_t done = std::min(images.count(), (first + world_.size()) * length);
      progress->update(done, fmt::format("{:.0f} images/s", double(done) / seconds_since(began)));
    }
  }
  if (progress) progress->finish();
  return at::cat(parts);
}

const monitoring::Classifier* Evaluator::classifier() const {
  return dynamic_cast<const monitoring::Classifier*>(extractor_.get());
}

Evaluated Evaluator::run(const LoadedWeights& weights, const Config& config, StopRequest* stop) {
  const auto scope = world_.heartbeat().enter("sampling for an evaluation");
  const auto began = Clock::now();
  const std::int64_t m = config.sampling.chunk, count = options_.samples;
  const std::int64_t chunks = (count + m - 1) / m;
  std::unique_ptr<monitoring::Progress> progress;
  std::vector<at::Tensor> parts;
  at::Tensor first;
  SamplingCalls calls;
  calls.on_step = [&](const SamplingStep& at, const at::Tensor&) {
    world_.heartbeat().touch();
    if (stop) stop->obey();
    if (world_.rank() != 0) return;
    if (!progress) progress = std::make_unique<monitoring::Progress>("sampling step", at.steps);
    const double images = double(at.step + 1) / double(at.steps) * double(count);
    progress->update(at.step + 1, fmt::format("{} images to evaluate, {:.1f} images/s", count,
                                              images / seconds_since(began)));
  };
  calls.on_round = [&](std::int64_t chunk, const at::Tensor& images) {
    at::Tensor mine = at::empty({0, extractor_->dimension()}, at::kFloat);
    run_collectively(world_, [&] {
      if (chunk < 0) return;
      const at::Tensor pixels = model::to_pixels(images).cpu();
      if (chunk == 0) first = pixels.slice(0, 0, std::min(m, count));
      mine = extractor_->features(pixels, [&](std::int64_t) { world_.heartbeat().touch(); });
    });
    const auto done = static_cast<std::int64_t>(parts.size()) * world_.size();
    std::vector<std::int64_t> rows;
    for (int rank = 0; rank < world_.size(); ++rank) rows.push_back(done + rank < chunks ? m : 0);
    parts.push_back(to_first_rank(world_, mine, rows));
  };
  sample_on_ranks(world_, config, weights.parameters, count, calls);
  if (progress) progress->finish();
  auto evaluated = compare(at::cat(parts), seconds_since(began), stop);
  evaluated.record.step = weights.step;
  evaluated.first = first;
  const auto& s = config.sampling;
  evaluated.measured = fmt::format(
      "{} images by {} in {} steps, seed {}, chunks of {}; reference {:.12}, network {:.12}", count,
      s.sampler, s.steps, s.seed, m, reference_sha256_, extractor_->sha256());
  return evaluated;
}

Evaluated Evaluator::run(const data::ImageSet& images) {
  const auto began = Clock::now();
  const at::Tensor features = features_of(images, "image", nullptr);
  auto evaluated = compare(features, seconds_since(began), nullptr);
  evaluated.statistics.facts = facts_of(images, *extractor_);
  return evaluated;
}

/// Collective. Computes the figures from the first options_.samples rows of `features`, [n, d] on
/// rank 0 and empty on other ranks.
Evaluated Evaluator::compare(const at::Tensor& features, double seconds, StopRequest* stop) {
  const auto scope = world_.heartbeat().enter("computing distances of an evaluation");
  Evaluated evaluated;
  auto& record = evaluated.record;
  record.samples = options_.samples;
  record.images_per_second = double(record.samples) / seconds;
  evaluated.statistics.facts.size = monitoring::to_text(extractor_->shape());
  evaluated.statistics.facts.extractor_sha256 = extractor_->sha256();
  record.kid = record.kid_deviation = record.precision = record.recall = std::nan("");
  record.named_share = record.named_share_real = std::nan("");
  record.effective_classes = record.effective_classes_real = std::nan("");
  at::Tensor counted;
  std::optional<monitoring::FrechetResampler> resampler;
  on_first_rank(stop, [&] {
    counted = features.narrow(0, 0, record.samples);
    evaluated.statistics.statistics = monitoring::statistics_of(counted);
    record.fid = prepared_->distance(evaluated.statistics.statistics);
    if (const auto* network = classifier()) {
      const monitoring::OneThreadEach math;
      evaluated.naming.add(network->probabilities_from(counted));
      const auto& real = network->origin().test_naming;
      record.named_share = evaluated.naming.named_share();
      record.named_share_real = real.named_share();
      record.effective_classes = evaluated.naming.effective_classes();
      record.effective_classes_real = real.effective_classes();
    }
    resampler.emplace(*prepared_, counted);
  });
  on_first_rank(stop, [&] {
    const auto interval = resampler->interval(resampler->affordable_replicas());
    record.fid_low = interval.low;
    record.fid_high = interval.high;
  });
  on_first_rank(stop, [&] { record.fid_infinity = resampler->infinity(); });
  on_first_rank(nullptr, [&] {  // not stopped: the evaluation is nearly done
    if (!reference_.features) return;
    const auto kid = monitoring::kernel_distance(counted, *reference_.features);
    record.kid = kid.mean;
    record.kid_deviation = kid.deviation;
    const auto shares = monitoring::precision_recall(counted, *reference_.features);
    record.precision = shares.precision;
    record.recall = shares.recall;
  });
  return evaluated;
}

}  // namespace laterna::launch
