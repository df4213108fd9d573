// Trains the built-in feature network (monitoring/quality/classifier.h) on labelled images, with
// Adam, a learning rate that rises and falls, and random shifts of the images by one pixel. The
// same data, epochs, seed and number of threads give the same weights bit for bit.
#pragma once

#include <cstdint>

#include "data/image_set.h"
#include "monitoring/quality/classifier.h"

namespace laterna::launch {

struct ClassifierRequest {
  std::int64_t epochs = 5;
  std::uint64_t seed = 0;
};

struct TrainedClassifier {
  monitoring::ClassifierForm form;
  monitoring::ClassifierWeights weights;
  monitoring::ClassifierOrigin origin;
};

/// Trains on `data` and tests on `test`, both labelled 0, 1, ...; without `test`, a tenth of `data`
/// is held out for testing. Shows progress. Throws data::InputError naming the data set that does
/// not fit.
TrainedClassifier train_classifier(const data::ImageSet& data, const data::ImageSet* test,
                                   const ClassifierRequest& request);

}  // namespace laterna::launch
