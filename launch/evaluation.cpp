#include "launch/evaluation.h"

#include <ATen/ATen.h>
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <chrono>
#include <cmath>

#include "data/error.h"
#include "data/host.h"
#include "launch/sampling.h"
#include "launch/together.h"
#include "model/diffusion.h"
#include "monitoring/frechet_errors.h"
#include "monitoring/kernel_distance.h"
#include "monitoring/manifold.h"
#include "monitoring/progress.h"

namespace laterna::launch {
namespace {

using data::seconds_since;

namespace fs = std::filesystem;
using Clock = std::chrono::steady_clock;

constexpr std::int64_t kKeptFeatures = 10000;  // of the reference: what precision and recall take
constexpr std::int64_t kBlock = 16 * monitoring::FeatureExtractor::kChunk;  // images at once

/// Collective: the rows of every rank, in rank order, on rank 0; [0, d] elsewhere. rows[r]: rank
/// r's.
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

fs::path builtin_of(const std::string& data_set) { return fs::path(data_set) / "features.h5"; }

monitoring::StatisticsFacts facts_of(const data::ImageSet& images,
                                     const monitoring::FeatureExtractor& extractor) {
  return {images.sha256(), images.split(), monitoring::to_text(extractor.shape()),
          extractor.sha256()};
}

/// At most `count` rows, evenly spread.
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
  together(world, [&] { open_extractor(shape); });
  open_reference(stop);
  together(world, [&] {
    if (world.rank() == 0) prepared_.emplace(reference_.statistics);
  });
}

void Evaluator::open_extractor(const monitoring::ImageShape& shape) {
  fs::path path = options_.extractor;
  if (options_.extractor == "builtin") {
    path = builtin_of(options_.reference);
    if (!fs::exists(path)) {
      throw data::InputError(fmt::format(
          "{}: the built-in extractor of this data set is not there; `laterna features train "
          "--data {} --output {}` makes it, or evaluation.extractor (--extractor) names another "
          "network",
          path.string(), options_.reference, path.string()));
    }
  }
  extractor_ = monitoring::FeatureExtractor::open(path, shape);
  if (options_.samples > extractor_->dimension() || options_.force) return;
  throw UsageError(fmt::format(
      "{} samples are too few for a network of {} features: their covariance is singular and FID "
      "means little; evaluation.samples (--samples) must be more than {}, or --force",
      options_.samples, extractor_->dimension(), extractor_->dimension()));
}

void Evaluator::open_reference(StopRequest* stop) {
  if (fs::path(options_.reference).extension() == ".npz") {
    together(world_, [&] {
      if (world_.rank() != 0) return;
      reference_ = monitoring::read_statistics(options_.reference);
      monitoring::StatisticsFile ours;
      ours.facts.size = monitoring::to_text(extractor_->shape());
      ours.facts.extractor_sha256 = extractor_->sha256();
      ours.statistics.mean = at::zeros({extractor_->dimension()}, at::kDouble);
      const auto differ = monitoring::comparison_differences(reference_, ours);
      if (!differ.empty()) {
        throw data::InputError(fmt::format("{}: cannot be compared with: {}", options_.reference,
                                           fmt::join(differ, "; ")));
      }
    });
    description_ = options_.reference;
  } else {
    std::unique_ptr<data::ImageSet> images;
    bool kept = false;
    fs::path cache;
    together(world_, [&] {
      images = std::make_unique<data::ImageSet>(data::ImageSet::open(options_.reference));
      cache =
          images->folder() / fmt::format("statistics-{}.npz", extractor_->sha256().substr(0, 12));
      if (world_.rank() != 0 || !fs::exists(cache)) return;
      reference_ = monitoring::read_statistics(cache);
      const auto differ = monitoring::differences(reference_.facts, facts_of(*images, *extractor_));
      if (!differ.empty()) {
        throw data::InputError(
            fmt::format("{}: is not of this data set and extractor: {}; remove it to have it made "
                        "anew",
                        cache.string(), fmt::join(differ, "; ")));
      }
      kept = true;
    });
    if (same_on_all_ranks(world_, kept) == 0) {
      const at::Tensor features = features_of(*images, "reference image", stop);
      together(world_, [&] {
        if (world_.rank() == 0) keep_statistics(*images, features, cache);
      });
    }
    description_ =
        fmt::format("{} of {} ({} images)", images->split(), images->name(), images->count());
  }
  description_ +=
      fmt::format(", extractor {} ({} features)", extractor_->name(), extractor_->dimension());
}

void Evaluator::keep_statistics(const data::ImageSet& images, const at::Tensor& features,
                                const fs::path& path) {
  reference_.statistics = monitoring::statistics_of(features);
  reference_.facts = facts_of(images, *extractor_);
  reference_.features = some_rows(features, kKeptFeatures).clone();
  try {
    monitoring::write_statistics(path, reference_);
  } catch (const data::WriteError& error) {  // somebody else's data set
    fmt::print(stderr, "warning: {}; the next evaluation computes them again\n", error.what());
  }
}

/// [n, d] on rank 0: every rank takes blocks of images in turn.
at::Tensor Evaluator::features_of(const data::ImageSet& images, const char* what,
                                  StopRequest* stop) {
  const auto scope = world_.activity().enter("features of a data set");
  std::unique_ptr<monitoring::Progress> progress;
  if (world_.rank() == 0) progress = std::make_unique<monitoring::Progress>(what, images.count());
  const auto count_of = [&](std::int64_t block) {
    return std::clamp<std::int64_t>(images.count() - block * kBlock, 0, kBlock);
  };
  std::vector<at::Tensor> parts;
  for (std::int64_t first = 0; first * kBlock < images.count(); first += world_.size()) {
    if (stop) stop->obey();
    std::vector<std::int64_t> rows;
    for (int rank = 0; rank < world_.size(); ++rank) rows.push_back(count_of(first + rank));
    const std::int64_t block = first + world_.rank();
    at::Tensor mine = at::empty({0, extractor_->dimension()}, at::kFloat);
    together(world_, [&] {
      const std::int64_t count = rows[static_cast<std::size_t>(world_.rank())];
      if (count == 0) return;
      mine = extractor_->features(monitoring::pixels_of(images, block * kBlock, count),
                                  [&](std::int64_t) { world_.activity().touch(); });
    });
    parts.push_back(to_first_rank(world_, mine, rows));
    if (progress) {
      progress->update(std::min(images.count(), (first + world_.size()) * kBlock), "looked at");
    }
  }
  if (progress) progress->finish();
  return at::cat(parts);
}

Evaluated Evaluator::run(const LoadedWeights& weights, const Config& config, StopRequest* stop) {
  const auto scope = world_.activity().enter("sampling for an evaluation");
  const auto began = Clock::now();
  const RunSampler sampler(config, weights.parameters, world_.device().torch());
  const std::int64_t m = config.sampling.chunk, count = options_.samples;
  const std::int64_t chunks = (count + m - 1) / m;
  std::unique_ptr<monitoring::Progress> progress;
  std::vector<at::Tensor> parts;
  at::Tensor first;
  SamplingCalls calls;
  calls.on_step = [&](const SamplingStep& at, const at::Tensor&) {
    world_.activity().touch();
    if (stop) stop->obey();
    if (world_.rank() != 0) return;
    if (!progress) progress = std::make_unique<monitoring::Progress>("sampling step", at.steps);
    const double images = double(at.step + 1) / double(at.steps) * double(count);
    progress->update(at.step + 1, fmt::format("{} images to evaluate, {:.1f} images/s", count,
                                              images / seconds_since(began)));
  };
  calls.on_round = [&](std::int64_t chunk, const at::Tensor& images) {
    at::Tensor mine = at::empty({0, extractor_->dimension()}, at::kFloat);
    together(world_, [&] {
      if (chunk < 0) return;
      const at::Tensor pixels = model::to_pixels(images).cpu();
      if (chunk == 0) first = pixels.slice(0, 0, std::min(m, count));
      mine = extractor_->features(pixels);
    });
    const auto done = static_cast<std::int64_t>(parts.size()) * world_.size();
    std::vector<std::int64_t> rows;
    for (int rank = 0; rank < world_.size(); ++rank) rows.push_back(done + rank < chunks ? m : 0);
    parts.push_back(to_first_rank(world_, mine, rows));
  };
  sample_on_ranks(world_, config, sampler.sampler(), count, calls);
  if (progress) progress->finish();
  const double seconds = seconds_since(began);
  Evaluated evaluated;
  together(world_, [&] {
    if (world_.rank() != 0) return;
    evaluated = compare(at::cat(parts).narrow(0, 0, count), seconds);
    evaluated.first = first;
  });
  evaluated.record.step = weights.step;
  return evaluated;
}

Evaluated Evaluator::run(const data::ImageSet& images) {
  const auto began = Clock::now();
  const at::Tensor features = features_of(images, "image", nullptr);
  const double seconds = seconds_since(began);
  Evaluated evaluated;
  together(world_, [&] {
    if (world_.rank() != 0) return;
    evaluated = compare(features, seconds);
    evaluated.statistics.facts = facts_of(images, *extractor_);
  });
  return evaluated;
}

/// On rank 0, while the others wait.
Evaluated Evaluator::compare(const at::Tensor& features, double seconds) const {
  auto& activity = world_.activity();
  Evaluated evaluated;
  auto& record = evaluated.record;
  const auto scope = activity.enter("distances of an evaluation");
  record.samples = features.size(0);
  record.images_per_second = double(record.samples) / seconds;
  evaluated.statistics.statistics = monitoring::statistics_of(features);
  record.fid = prepared_->distance(evaluated.statistics.statistics);
  activity.touch();
  const monitoring::FrechetResampler resampler(*prepared_, features);
  const auto interval = resampler.interval(resampler.affordable_replicas());
  record.fid_low = interval.low;
  record.fid_high = interval.high;
  activity.touch();
  record.fid_infinity = resampler.infinity();
  activity.touch();
  record.kid = record.kid_deviation = record.precision = record.recall = std::nan("");
  if (reference_.features) {
    const auto kid = monitoring::kernel_distance(features, *reference_.features);
    record.kid = kid.mean;
    record.kid_deviation = kid.deviation;
    const auto shares = monitoring::precision_recall(features, *reference_.features);
    record.precision = shares.precision;
    record.recall = shares.recall;
  }
  evaluated.statistics.facts.size = monitoring::to_text(extractor_->shape());
  evaluated.statistics.facts.extractor_sha256 = extractor_->sha256();
  return evaluated;
}

}  // namespace laterna::launch
