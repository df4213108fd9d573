// `laterna features`: `train` makes the built-in feature network, and `classify` reports how
// confidently it names images, which for generated images is a measure of their quality when
// compared with real ones.
#include <ATen/ATen.h>
#include <fmt/format.h>

#include <functional>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <vector>

#include "data/error.h"
#include "data/files/durable_file.h"
#include "data/files/hdf5_file.h"
#include "data/files/sha256.h"
#include "launch/collective.h"
#include "launch/config.h"
#include "launch/evaluation/classifier_training.h"
#include "launch/pixels.h"
#include "launch/verbs/verbs.h"
#include "monitoring/telemetry/progress.h"

namespace laterna::launch {
namespace {

/// The images of a data set folder or of one shard.
struct Images {
  std::int64_t count;
  monitoring::ImageShape shape;
  /// Returns images first .. first+count-1 as uint8 [count,C,H,W].
  std::function<at::Tensor(std::int64_t first, std::int64_t count)> pixels;
  /// One label per image, or empty.
  std::vector<std::int32_t> labels;
};

Images open_set(const std::string& folder) {
  const auto set = std::make_shared<data::ImageSet>(data::ImageSet::open(folder));
  std::vector<std::int32_t> labels;
  for (std::int64_t i = 0; set->has_labels() && i < set->count(); ++i) {
    labels.push_back(set->label(i));
  }
  return {set->count(),
          {set->channels(), set->height(), set->width()},
          [set](std::int64_t first, std::int64_t count) { return pixels_of(*set, first, count); },
          std::move(labels)};
}

Images open_shard(const std::string& path) {
  const auto file = data::Hdf5File::open(path);
  if (!file.has_attribute("/", "format") ||
      file.string_attribute("/", "format") != "laterna-images") {
    throw data::InputError(
        path + ": holds no images; give a data set's folder, or a file like images.h5 of `sample`");
  }
  const auto info = file.info("images");
  if (!info.exact || info.type != data::Type::uint8 || info.shape.size() != 4) {
    throw data::InputError(path + ": its `images` are not uint8 [n,C,H,W]; recreate the file");
  }
  const at::Tensor all = at::empty(info.shape, at::kByte);
  file.read("images", data::Type::uint8, all.mutable_data_ptr());
  if (data::sha256(all.const_data_ptr(), all.nbytes()) != file.string_attribute("/", "sha256")) {
    throw data::InputError(
        path + ": is damaged: the pixels do not match the recorded SHA-256; recreate the file");
  }
  std::vector<std::int32_t> labels;
  if (file.contains("labels")) labels = file.read<std::int32_t>("labels");
  if (!labels.empty() && static_cast<std::int64_t>(labels.size()) != all.size(0)) {
    throw data::InputError(fmt::format("{}: has {} labels for {} images; recreate the file", path,
                                       labels.size(), all.size(0)));
  }
  return {all.size(0),
          {all.size(1), all.size(2), all.size(3)},
          [all](std::int64_t first, std::int64_t count) { return all.narrow(0, first, count); },
          std::move(labels)};
}

struct Classified {
  monitoring::Naming naming;
  std::int64_t correct = 0;
  double confidence = 0;  // summed over the images
};

Classified classify(const monitoring::Classifier& classifier, const Images& images) {
  constexpr std::int64_t kPart = 64 * monitoring::FeatureExtractor::kChunk;
  Classified found;
  monitoring::Progress progress("image", images.count);
  for (std::int64_t first = 0; first < images.count; first += kPart) {
    const auto probabilities =
        classifier.probabilities(images.pixels(first, std::min(kPart, images.count - first)),
                                 [&](std::int64_t done) { progress.update(first + done, ""); });
    found.naming.add(probabilities);
    const auto [best, index] = probabilities.max(1);
    found.confidence += best.sum(at::kDouble).item<double>();
    const auto* assigned = index.const_data_ptr<std::int64_t>();
    for (std::int64_t i = 0; !images.labels.empty() && i < index.size(0); ++i) {
      found.correct += images.labels[first + i] == assigned[i];
    }
  }
  progress.finish();
  return found;
}

void print(const std::string& source, const Classified& found, bool labelled) {
  const auto& naming = found.naming;
  const auto images = double(naming.images());
  const double share = naming.named_share();
  fmt::print(
      "{}: {} images, {:.1f}% named with probability above {}, mean probability {:.4f}, effective "
      "classes {:.2f} of {}\n",
      source, naming.images(), 100 * share, monitoring::kNamedProbability,
      found.confidence / images, naming.effective_classes(), naming.assigned.size());
  if (labelled) fmt::print("accuracy {:.2f}%\n", 100 * double(found.correct) / images);
  for (std::size_t c = 0; c < naming.assigned.size(); ++c) {
    fmt::print("class {}: {} images, {} of them named\n", c, naming.assigned[c], naming.named[c]);
  }
  nlohmann::json line{{"images", naming.images()},
                      {"named_share", share},
                      {"mean_probability", found.confidence / images},
                      {"effective_classes", naming.effective_classes()},
                      {"class_assigned", naming.assigned},
                      {"class_named", naming.named}};
  if (labelled) line["accuracy"] = double(found.correct) / images;
  fmt::print("{}\n", line.dump());
}

void add_classify(CLI::App& features, Action& action) {
  struct Request {
    std::string features, data;
  };
  const auto request = std::make_shared<Request>();
  auto* verb =
      features.add_subcommand("classify", "Report how confidently the network names images");
  verb->add_option("--features", request->features, "A file written by features train")->required();
  verb->add_option("--data", request->data,
                   "A data set's folder, or a shard such as images.h5 of sample")
      ->required();
  verb->callback([&action, request] {
    action.run = [request](dist::World& world) {
      require_single_process(world, "features classify");
      const monitoring::Classifier classifier(request->features);
      const auto images = std::filesystem::path(request->data).extension() == ".h5"
                              ? open_shard(request->data)
                              : open_set(request->data);
      if (images.count == 0) throw data::InputError(request->data + ": holds no images");
      print(request->data, classify(classifier, images), !images.labels.empty());
      return 0;
    };
  });
}

void add_features_train(CLI::App& features, Action& action) {
  struct Request {
    std::string data, test, output;
    ClassifierRequest training;
  };
  const auto request = std::make_shared<Request>();
  auto* verb = features.add_subcommand("train", "Train the built-in feature network");
  verb->add_option("--data", request->data, "A labelled data set to train on")->required();
  verb->add_option("--output", request->output, "The file to write, such as features.h5")
      ->required();
  verb->add_option("--test", request->test,
                   "A labelled data set to test on (default: a held-out tenth of --data)");
  verb->add_option("--epochs", request->training.epochs, "Passes over the data")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  verb->add_option("--seed", request->training.seed, "Random seed")->capture_default_str();
  verb->callback([&action, request] {
    action.run = [request](dist::World& world) {
      require_single_process(world, "features train");
      const std::filesystem::path output = request->output;
      if (output.extension() != ".h5") {  // by which FeatureExtractor::open recognises it
        throw UsageError(fmt::format("--output {}: must end in .h5", output.string()));
      }
      const auto data = data::ImageSet::open(request->data);
      std::optional<data::ImageSet> test;
      if (!request->test.empty()) test = data::ImageSet::open(request->test);
      data::try_writing(output);
      const auto trained = train_classifier(data, test ? &*test : nullptr, request->training);
      monitoring::save_classifier(output, trained.form, trained.weights, trained.origin);
      const auto& origin = trained.origin;
      fmt::print(
          "{}: {} features, {} classes; of {} ({} images) {:.2f}% get the right label, {:.2f}% are "
          "named with probability above {}\n",
          output.string(), monitoring::Classifier(output).dimension(), trained.form.classes,
          origin.test_data, origin.test_count,
          100 * double(origin.test_correct) / double(origin.test_count),
          100 * origin.test_naming.named_share(), monitoring::kNamedProbability);
      return 0;
    };
  });
}

}  // namespace

void add_features(CLI::App& app, Action& action) {
  auto* features = app.add_subcommand("features", "Train and apply the built-in feature network");
  features->require_subcommand(1);
  add_features_train(*features, action);
  add_classify(*features, action);
}

}  // namespace laterna::launch
