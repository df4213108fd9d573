// The built-in feature network: a small convolutional classifier that `laterna features train`
// trains on a labelled data set. Features are the activations before its last linear layer; its
// class probabilities tell how many images can be named. Any number of channels, sides from 8.
//
//   x in -1..1 [n,C,H,W]
//   conv.0 .. conv.S-1   3x3, ReLU, 2x2 maximum: halves the sides until the smaller is 4 .. 7
//   conv.S               3x3, ReLU, mean to 2x2
//   hidden               linear, ReLU: the features [n,64]
//   classes              linear: the logits
//
// The file (HDF5): each parameter by name as float32; attributes format "laterna-features",
// version 2, channels, height, width, classes, weights_sha256 (of the parameters' bytes in the
// order of classifier_parameters); data_name, data_split, data_sha256 of what it was trained on;
// test_data, test_count, test_correct, and how it names the test's images: test/assigned and
// test/named, int64 [classes] (monitoring/naming.h).
#pragma once

#include <map>
#include <vector>

#include "monitoring/features.h"
#include "monitoring/naming.h"

namespace laterna::monitoring {

/// What a classifier is for.
struct ClassifierForm {
  ImageShape image;
  std::int64_t classes = 0;
};

/// What it was trained and tested on; `test_data` in words.
struct ClassifierOrigin {
  std::string data_name, data_split, data_sha256, test_data;
  std::int64_t test_count = 0, test_correct = 0;
  Naming test_naming;
};

struct ClassifierParameter {
  std::string name;
  std::vector<std::int64_t> shape;
};
using ClassifierWeights = std::map<std::string, at::Tensor>;

constexpr std::int64_t kSmallestSide = 8;

/// All of them, in the order of their use.
std::vector<ClassifierParameter> classifier_parameters(const ClassifierForm& form);

/// `pixels` [n,C,H,W] in 0..255, any dtype -> float32 [n,64].
at::Tensor classifier_features(const ClassifierWeights& weights, const at::Tensor& pixels);
/// [n,64] -> [n,classes].
at::Tensor classifier_logits(const ClassifierWeights& weights, const at::Tensor& features);

/// Writes the file durably; an old one is replaced whole. Throws data::WriteError.
void save_classifier(const std::filesystem::path& path, const ClassifierForm& form,
                     const ClassifierWeights& weights, const ClassifierOrigin& origin);

class Classifier final : public FeatureExtractor {
 public:
  /// Throws data::InputError naming the file when it is missing, foreign or damaged.
  explicit Classifier(const std::filesystem::path& path);

  /// As features(), of the classes: float32 [n, classes()], rows that add up to 1.
  at::Tensor probabilities(const at::Tensor& pixels, const ImagesDone& done = {}) const;
  /// The classes' probabilities, float32 [n, classes()], from features [n,64] that features() made.
  at::Tensor probabilities_from(const at::Tensor& features) const;
  std::int64_t classes() const { return content_.form.classes; }
  const ClassifierOrigin& origin() const { return content_.origin; }

 private:
  struct Content {
    ClassifierForm form;
    ClassifierWeights weights;
    ClassifierOrigin origin;
  };
  static Content read(const std::filesystem::path& path);
  Classifier(const std::filesystem::path& path, Content content);
  at::Tensor features_of_chunk(const at::Tensor& pixels) const override;

  Content content_;
};

}  // namespace laterna::monitoring
