// Evaluates generated images: FID with its interval, FID-infinity, KID, precision and recall
// against a reference, and how confidently a classifier names them. Images are sampled, and their
// features computed, in fixed chunks spread over the ranks, and rank 0 gathers the features in
// index order, so that the figures are the same bit for bit on any number of ranks.
#pragma once

#include <filesystem>
#include <memory>
#include <optional>
#include <string>

#include "data/image_set.h"
#include "dist/world.h"
#include "launch/checkpoint/checkpoint.h"
#include "launch/config.h"
#include "launch/training/stop_request.h"
#include "monitoring/quality/classifier.h"
#include "monitoring/quality/frechet.h"
#include "monitoring/quality/statistics_file.h"
#include "monitoring/telemetry/step_record.h"

namespace laterna::launch {

/// Returns the shape of the images that the configured model makes.
monitoring::ImageShape image_shape(const Config& config);

struct EvaluatorOptions {
  std::string reference;              // a data set's folder, or statistics (.npz)
  std::string extractor = "builtin";  // features.h5 of the reference data set, or a file
  std::int64_t samples = 5000;
  bool force = false;  // allow samples <= features, where the covariance is singular
};

/// The result of an evaluation; complete only on rank 0.
struct Evaluated {
  monitoring::EvaluationRecord record;
  monitoring::StatisticsFile statistics;  // of the generated images
  monitoring::Naming naming;  // of the generated images; empty if the network is not a classifier
  at::Tensor first;           // uint8 [n, C, H, W]: the first images, at most a chunk
  std::string measured;       // how; figures are comparable only if this is equal
};

/// The constructor and run() are collective. With `stop` they throw StopAgreed on all ranks when
/// the ranks agree to stop.
class Evaluator {
 public:
  /// Opens the reference and the extractor. The features of a reference data set are computed by
  /// all ranks, unless its folder has their statistics. Throws CollectiveError on all ranks for
  /// missing or damaged files, files that differ from rank 0's, images of another shape, statistics
  /// of another data set or extractor, and too few samples.
  Evaluator(const EvaluatorOptions& options, const monitoring::ImageShape& shape,
            dist::World& world, StopRequest* stop = nullptr);

  /// Evaluates images sampled from the weights as config.sampling says.
  Evaluated run(const LoadedWeights& weights, const Config& config, StopRequest* stop = nullptr);
  /// Evaluates the images of a data set.
  Evaluated run(const data::ImageSet& images);

  /// Returns the reference and the extractor in words: "train of mnist (60000 images), extractor
  /// features.h5 (128 features)".
  const std::string& description() const { return description_; }
  /// Returns the extractor as a classifier, or null if it is not one.
  const monitoring::Classifier* classifier() const;

 private:
  void open(const monitoring::ImageShape& shape);
  std::filesystem::path extractor_path() const;
  void read_reference();
  bool read_kept_statistics(const std::filesystem::path& path);
  void make_statistics(const std::filesystem::path& path, StopRequest* stop);
  void on_first_rank(StopRequest* stop, const std::function<void()>& work);
  at::Tensor features_of(const data::ImageSet& images, const char* what, StopRequest* stop);
  Evaluated compare(const at::Tensor& features, double seconds, StopRequest* stop);

  EvaluatorOptions options_;
  dist::World& world_;
  std::unique_ptr<data::ImageSet> images_;  // the reference; null if it is a file
  std::unique_ptr<monitoring::FeatureExtractor> extractor_;
  monitoring::StatisticsFile reference_;                  // on rank 0
  std::optional<monitoring::FrechetReference> prepared_;  // reference_ for distances; on rank 0
  std::string reference_sha256_;                          // on rank 0
  std::string description_;
};

}  // namespace laterna::launch
