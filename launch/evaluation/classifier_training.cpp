#include "launch/evaluation/classifier_training.h"

#include <ATen/ATen.h>
#include <fmt/format.h>

#include <cmath>
#include <numeric>
#include <span>
#include <vector>

#include "data/error.h"
#include "data/partition.h"
#include "data/philox.h"
#include "launch/pixels.h"
#include "model/optimizer.h"
#include "model/parameters.h"
#include "monitoring/telemetry/progress.h"

namespace laterna::launch {
namespace {

constexpr std::int64_t kBatch = 128;
constexpr double kLearningRate = 2e-3;  // at its peak
constexpr double kRise = 0.1;           // share of the steps in which the rate rises
constexpr std::int64_t kMostClasses = 10000;

/// Some images of a data set, by index.
struct Subset {
  const data::ImageSet& set;
  std::vector<std::int64_t> images;
  std::int64_t count() const { return static_cast<std::int64_t>(images.size()); }
};

struct Batch {
  at::Tensor pixels;  // uint8 [n,C,H,W]
  at::Tensor labels;  // int64 [n]
};

monitoring::ImageShape shape_of(const data::ImageSet& set) {
  return {set.channels(), set.height(), set.width()};
}

Batch batch_of(const data::ImageSet& set, std::span<const std::int64_t> images) {
  const auto count = static_cast<std::int64_t>(images.size());
  Batch batch{pixels_of(set, images), at::empty({count}, at::kLong)};
  auto* labels = batch.labels.mutable_data_ptr<std::int64_t>();
  for (std::int64_t i = 0; i < count; ++i) {
    labels[i] = set.label(images[i]);
  }
  return batch;
}

/// Returns the largest label + 1. Throws data::InputError when the labels cannot be trained on.
std::int64_t classes_of(const data::ImageSet& set) {
  const std::string folder = set.folder().string();
  if (!set.has_labels()) {
    throw data::InputError(folder +
                           ": has no labels; give a data set that was imported with labels");
  }
  std::int64_t most = 0;
  for (std::int64_t i = 0; i < set.count(); ++i) {
    const std::int64_t label = set.label(i);
    if (label < 0 || label >= kMostClasses) {
      throw data::InputError(fmt::format("{}: image {} has label {}; labels must be 0 .. {}",
                                         folder, i, label, kMostClasses - 1));
    }
    most = std::max(most, label);
  }
  if (most == 0) {
    throw data::InputError(folder +
                           ": all images have label 0; give a data set with at least two classes");
  }
  return most + 1;
}

monitoring::ClassifierForm form_for(const data::ImageSet& set) {
  const monitoring::ClassifierForm form{shape_of(set), classes_of(set)};
  if (std::min(form.image.height, form.image.width) < monitoring::kSmallestSide) {
    throw data::InputError(fmt::format("{}: images of {} are too small; sides must be at least {}",
                                       set.folder().string(), to_text(form.image),
                                       monitoring::kSmallestSide));
  }
  return form;
}

void check_test(const data::ImageSet& test, const monitoring::ClassifierForm& form) {
  if (const auto shape = shape_of(test); !(shape == form.image)) {
    throw data::InputError(fmt::format("{}: has images of {}, but the training data has {}",
                                       test.folder().string(), to_text(shape),
                                       to_text(form.image)));
  }
  if (const auto classes = classes_of(test); classes > form.classes) {
    throw data::InputError(fmt::format("{}: has {} classes, but the training data has {}",
                                       test.folder().string(), classes, form.classes));
  }
}

model::Parameters make_parameters(const monitoring::ClassifierForm& form, std::uint64_t seed) {
  std::vector<model::ParameterSpec> specs;
  std::int64_t offset = 0;
  for (const auto& parameter : monitoring::classifier_parameters(form)) {
    const std::int64_t size = c10::multiply_integers(parameter.shape);
    const auto number = static_cast<std::int64_t>(specs.size());
    specs.push_back({parameter.name, parameter.shape, offset, size, number, false});
    offset += (size + 15) / 16 * 16;
  }
  model::Parameters parameters(std::move(specs), at::kFloat, true);
  const at::NoGradGuard no_grad;
  for (const auto& spec : parameters.specs()) {
    if (spec.shape.size() == 1) continue;  // biases start at zero
    at::Tensor values = at::empty(spec.shape, at::kFloat);
    data::fill_normal(values.mutable_data_ptr<float>(), static_cast<std::size_t>(spec.size), seed,
                      data::Stream::initialisation, 0, static_cast<std::uint32_t>(spec.number));
    const auto inputs = double(spec.size) / double(spec.shape[0]);
    parameters[spec.name].copy_(values * std::sqrt(2 / inputs));  // He et al. 2015
  }
  return parameters;
}

monitoring::ClassifierWeights by_name(const model::Parameters& parameters) {
  monitoring::ClassifierWeights weights;
  for (const auto& spec : parameters.specs()) weights.emplace(spec.name, parameters[spec.name]);
  return weights;
}

/// Returns each image shifted by -1, 0 or 1 pixels along both axes, with the border repeated.
at::Tensor shifted(const at::Tensor& pixels, std::uint64_t seed, std::int64_t step) {
  const at::Tensor wide = at::replication_pad2d(pixels.to(at::kFloat), {1, 1, 1, 1});
  std::vector<at::Tensor> images;
  for (std::int64_t i = 0; i < pixels.size(0); ++i) {
    const auto words = data::random_block(
        seed, data::Stream::flip, static_cast<std::uint64_t>(step), static_cast<std::uint32_t>(i));
    images.push_back(
        wide[i].narrow(1, words[0] % 3, pixels.size(2)).narrow(2, words[1] % 3, pixels.size(3)));
  }
  return at::stack(images);
}

/// Classifies the images and fills in the test_count, test_correct and test_naming of `origin`.
void count_named(const monitoring::ClassifierWeights& weights, const Subset& subset,
                 monitoring::ClassifierOrigin& origin) {
  const at::NoGradGuard no_grad;
  origin.test_count = subset.count();
  for (std::int64_t first = 0; first < subset.count(); first += kBatch) {
    const auto batch =
        batch_of(subset.set,
                 std::span(subset.images).subspan(first, std::min(kBatch, subset.count() - first)));
    const auto logits = monitoring::classifier_logits(
        weights, monitoring::classifier_features(weights, batch.pixels));
    origin.test_correct += logits.argmax(1).eq(batch.labels).sum().item<std::int64_t>();
    origin.test_naming.add(logits.softmax(1));
  }
}

void learn(const model::Parameters& parameters, const Subset& subset,
           const ClassifierRequest& request) {
  const auto weights = by_name(parameters);
  model::Optimizer optimizer(parameters, 0);
  data::Partition order(request.seed, subset.count());
  const std::int64_t size = std::min(kBatch, subset.count());
  const std::int64_t steps = request.epochs * ((subset.count() + size - 1) / size);
  monitoring::Progress progress("training batch", steps);
  for (std::int64_t step = 0; step < steps; ++step) {
    std::vector<std::int64_t> images;
    for (std::int64_t i = 0; i < size; ++i) {
      images.push_back(subset.images[order.at(static_cast<std::uint64_t>(step), size, i)]);
    }
    const auto batch = batch_of(subset.set, images);
    const at::Tensor features =
        monitoring::classifier_features(weights, shifted(batch.pixels, request.seed, step));
    const at::Tensor loss =
        at::cross_entropy_loss(monitoring::classifier_logits(weights, features), batch.labels);
    parameters.gradient().zero_();
    loss.backward();
    const double share = (double(step) + 1) / double(steps);
    optimizer.step(kLearningRate * std::min(share / kRise, (1 - share) / (1 - kRise)), 1);
    progress.update(step + 1, fmt::format("loss {:.3f}", loss.item<double>()));
  }
  progress.finish();
}

}  // namespace

TrainedClassifier train_classifier(const data::ImageSet& data, const data::ImageSet* test,
                                   const ClassifierRequest& request) {
  const auto form = form_for(data);
  if (test) check_test(*test, form);
  Subset learnt{data, {}}, tested{test ? *test : data, {}};
  if (test) {
    learnt.images.resize(data.count());
    tested.images.resize(test->count());
    std::iota(learnt.images.begin(), learnt.images.end(), 0);
    std::iota(tested.images.begin(), tested.images.end(), 0);
  } else {
    const auto order = data::Partition(request.seed, data.count()).permutation(0);
    const auto cut = order.begin() + std::max<std::int64_t>(1, data.count() / 10);
    tested.images.assign(order.begin(), cut);
    learnt.images.assign(cut, order.end());
  }
  const auto parameters = make_parameters(form, request.seed);
  learn(parameters, learnt, request);
  TrainedClassifier trained{form, by_name(parameters), {}};
  auto& origin = trained.origin;
  origin.data_name = data.name();
  origin.data_split = data.split();
  origin.data_sha256 = data.sha256();
  origin.test_data = test ? fmt::format("{} {}", test->name(), test->split())
                          : fmt::format("a held-out tenth of {} {}", data.name(), data.split());
  count_named(trained.weights, tested, origin);
  return trained;
}

}  // namespace laterna::launch
