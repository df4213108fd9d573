// The built-in feature network: a small convolutional classifier that `laterna features train`
// trains on a labelled data set. Its features are the activations before the last linear layer; its
// class probabilities show how many images it can name (monitoring/quality/naming.h). It takes
// images of any number of channels, at least 8 pixels high and wide.
//
//   x in -1..1 [n,C,H,W]
//   conv.0 .. conv.S-1   3x3, ReLU, 2x2 max pooling: halves the sides until the smaller is 4 .. 7
//   conv.S               3x3, ReLU, average pooling to 2x2
//   hidden               linear, ReLU: the features [n,64]
//   classes              linear: the logits
//
// The file (HDF5) holds each parameter by name as float32 and the attributes format
// "laterna-features", version 2, channels, height, width, classes, weights_sha256 (of the
// parameters' bytes in the order of classifier_parameters); data_name, data_split and data_sha256
// of the training data; test_data, test_count and test_correct of the test. The data sets
// test/assigned and test/named, int64 [classes], are the Naming of the test images.
#pragma once

#include <map>
#include <vector>

#include "monitoring/quality/features.h"
#include "monitoring/quality/naming.h"

namespace laterna::monitoring {

/// Image shape and number of classes of a classifier.
struct ClassifierForm {
  ImageShape image;
  std::int64_t classes = 0;
};

/// Training data and test results of a classifier; `test_data` describes the test images in words.
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

/// Smallest height and width of images.
constexpr std::int64_t kSmallestSide = 8;

/// Returns name and shape of all parameters in the order of their use.
std::vector<ClassifierParameter> classifier_parameters(const ClassifierForm& form);

/// Returns the features, float32 [n,64], of `pixels` [n,C,H,W] in 0..255 of any dtype.
at::Tensor classifier_features(const ClassifierWeights& weights, const at::Tensor& pixels);
/// Returns the logits [n,classes] of features [n,64].
at::Tensor classifier_logits(const ClassifierWeights& weights, const at::Tensor& features);

/// Writes the file durably and atomically replaces an existing one. Throws data::WriteError.
void save_classifier(const std::filesystem::path& path, const ClassifierForm& form,
                     const ClassifierWeights& weights, const ClassifierOrigin& origin);

class Classifier final : public FeatureExtractor {
 public:
  /// Reads the file. Throws data::InputError naming it when it is missing, damaged or of another
  /// kind.
  explicit Classifier(const std::filesystem::path& path);

  /// Returns the class probabilities of `pixels`, float32 [n, classes()], each row summing to 1.
  /// Arguments and errors as in features().
  at::Tensor probabilities(const at::Tensor& pixels, const ImagesDone& done = {}) const;
  /// Returns the class probabilities, float32 [n, classes()], from the result [n,64] of features().
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
