// How good generated images are: FID with its interval, FID-infinity, KID, precision and recall
// against a reference, and how surely a classifier names them. Images are sampled and looked at in
// fixed chunks spread over the ranks, and features come to rank 0 in index order: the same bits on
// any number of ranks.
#pragma once

#include <filesystem>
#include <memory>
#include <optional>
#include <string>

#include "data/image_set.h"
#include "dist/world.h"
#include "launch/checkpoint.h"
#include "launch/config.h"
#include "launch/stop_request.h"
#include "monitoring/classifier.h"
#include "monitoring/frechet.h"
#include "monitoring/statistics_file.h"
#include "monitoring/step_record.h"

namespace laterna::launch {

/// Of the images that a model makes.
monitoring::ImageShape image_shape(const Config& config);

struct EvaluatorOptions {
  std::string reference;              // a data set's folder, or statistics (.npz)
  std::string extractor = "builtin";  // that of the reference data set, or a file
  std::int64_t samples = 5000;
  bool force = false;  // also no more samples than features, where the covariance is singular
};

/// What an evaluation found, on rank 0.
struct Evaluated {
  monitoring::EvaluationRecord record;
  monitoring::StatisticsFile statistics;  // of the generated images
  monitoring::Naming naming;  // of the generated images; empty where the network is no classifier
  at::Tensor first;           // uint8 [n, C, H, W]: the first images, at most a chunk
  std::string measured;       // how: figures are comparable where it is the same
};

/// All members are collective. With `stop` they throw StopAgreed on all ranks when ranks agree to
/// stop.
class Evaluator {
 public:
  /// Opens the reference and the extractor; a data set's features are computed by all ranks, unless
  /// its folder has their statistics. Throws CollectiveError on all ranks: missing or damaged files
  /// or others than rank 0's, images of another shape, statistics of another data set or extractor,
  /// too few samples.
  Evaluator(const EvaluatorOptions& options, const monitoring::ImageShape& shape,
            dist::World& world, StopRequest* stop = nullptr);

  /// Samples from the weights as config.sampling says.
  Evaluated run(const LoadedWeights& weights, const Config& config, StopRequest* stop = nullptr);
  /// The images of a data set instead.
  Evaluated run(const data::ImageSet& images);

  /// "train of mnist (60000 images), extractor features.h5 (128 features)"
  const std::string& description() const { return description_; }
  /// The network as a classifier; null where it is none.
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
  std::unique_ptr<data::ImageSet> images_;  // the reference's; none where it is a file
  std::unique_ptr<monitoring::FeatureExtractor> extractor_;
  monitoring::StatisticsFile reference_;                  // on rank 0
  std::optional<monitoring::FrechetReference> prepared_;  // the same, for distances to it
  std::string reference_sha256_;                          // on rank 0
  std::string description_;
};

}  // namespace laterna::launch
