#include "monitoring/quality/classifier.h"

#include <ATen/ATen.h>
#include <fmt/format.h>
#include <fmt/ranges.h>

#include "data/error.h"
#include "data/files/durable_file.h"
#include "data/files/hdf5_file.h"
#include "data/files/sha256.h"

namespace laterna::monitoring {
namespace {

constexpr const char* kFormat = "laterna-features";
constexpr std::int64_t kVersion = 2;
constexpr std::int64_t kFirstWidth = 32, kWidest = 96, kFeatures = 64;
constexpr std::int64_t kLastSide = 2;
constexpr const char* kMakeAgain = "recreate it with `laterna features train`";

std::string conv_name(std::int64_t layer) { return fmt::format("conv.{}", layer); }

std::string weights_hash(const ClassifierForm& form, const ClassifierWeights& weights) {
  data::Sha256 hash;
  for (const auto& parameter : classifier_parameters(form)) {
    const at::Tensor plain = weights.at(parameter.name).contiguous();
    hash.update(plain.const_data_ptr(), plain.nbytes());
  }
  return hash.finish();
}

[[noreturn]] void refuse(const std::filesystem::path& path, const std::string& what) {
  throw data::InputError(fmt::format("{}: {}; {}", path.string(), what, kMakeAgain));
}

ClassifierForm read_form(const data::Hdf5File& file) {
  const auto& path = file.path();
  if (!file.has_attribute("/", "format") || file.string_attribute("/", "format") != kFormat) {
    refuse(path, "is not a feature network");
  }
  const auto version = file.integer_attribute("/", "version");
  if (version != kVersion) {
    refuse(path,
           fmt::format("has version {}, but this program reads version {}", version, kVersion));
  }
  const auto number = [&](const char* key) { return file.integer_attribute("/", key); };
  const ClassifierForm form{{number("channels"), number("height"), number("width")},
                            number("classes")};
  const auto& image = form.image;
  if (image.channels < 1 || std::min(image.height, image.width) < kSmallestSide ||
      form.classes < 2) {
    refuse(path,
           fmt::format("states images of {} and {} classes, which a feature network cannot have",
                       to_text(image), form.classes));
  }
  return form;
}

}  // namespace

std::vector<ClassifierParameter> classifier_parameters(const ClassifierForm& form) {
  std::vector<ClassifierParameter> parameters;
  const auto add = [&](const std::string& name, std::vector<std::int64_t> shape) {
    const std::int64_t out = shape[0];
    parameters.push_back({name + ".weight", std::move(shape)});
    parameters.push_back({name + ".bias", {out}});
  };
  std::int64_t channels = form.image.channels, width = kFirstWidth, layer = 0;
  for (auto side = std::min(form.image.height, form.image.width);; side /= 2) {
    add(conv_name(layer++), {width, channels, 3, 3});
    channels = width;
    width = std::min(2 * width, kWidest);
    if (side < kSmallestSide) break;
  }
  add("hidden", {kFeatures, channels * kLastSide * kLastSide});
  add("classes", {form.classes, kFeatures});
  return parameters;
}

at::Tensor classifier_features(const ClassifierWeights& weights, const at::Tensor& pixels) {
  const auto of = [&](const std::string& name) -> const at::Tensor& { return weights.at(name); };
  at::Tensor x = pixels.to(at::kFloat) / 127.5 - 1;  // [n,C,H,W]
  for (std::int64_t layer = 0; weights.contains(conv_name(layer) + ".weight"); ++layer) {
    const std::string conv = conv_name(layer);
    if (layer > 0) x = at::max_pool2d(x, 2);
    x = at::conv2d(x, of(conv + ".weight"), of(conv + ".bias"), 1, 1).relu();
  }
  x = at::adaptive_avg_pool2d(x, {kLastSide, kLastSide}).flatten(1);
  return at::linear(x, of("hidden.weight"), of("hidden.bias")).relu();  // [n,64]
}

at::Tensor classifier_logits(const ClassifierWeights& weights, const at::Tensor& features) {
  return at::linear(features, weights.at("classes.weight"), weights.at("classes.bias"));
}

void save_classifier(const std::filesystem::path& path, const ClassifierForm& form,
                     const ClassifierWeights& weights, const ClassifierOrigin& origin) {
  const std::filesystem::path aside = path.string() + ".part";
  auto file = data::Hdf5File::create(aside);
  for (const auto& parameter : classifier_parameters(form)) {
    const at::Tensor plain = weights.at(parameter.name).detach().contiguous();
    file.write(parameter.name, parameter.shape, plain.const_data_ptr<float>());
  }
  const auto set = [&](const char* key, const auto& value) { file.set_attribute("/", key, value); };
  set("format", kFormat);
  set("version", kVersion);
  set("channels", form.image.channels);
  set("height", form.image.height);
  set("width", form.image.width);
  set("classes", form.classes);
  set("weights_sha256", weights_hash(form, weights));
  set("data_name", origin.data_name);
  set("data_split", origin.data_split);
  set("data_sha256", origin.data_sha256);
  set("test_data", origin.test_data);
  set("test_count", origin.test_count);
  set("test_correct", origin.test_correct);
  const auto& naming = origin.test_naming;
  file.write("test/assigned", {form.classes}, naming.assigned.data());
  file.write("test/named", {form.classes}, naming.named.data());
  file.close();
  data::rename_durably(aside, path);
}

Classifier::Content Classifier::read(const std::filesystem::path& path) {
  const auto file = data::Hdf5File::open(path);
  Content content{read_form(file), {}, {}};
  for (const auto& parameter : classifier_parameters(content.form)) {
    const auto info = file.info(parameter.name);
    if (info.shape != parameter.shape) {
      refuse(path, fmt::format("{} has shape [{}] instead of [{}]", parameter.name,
                               fmt::join(info.shape, ","), fmt::join(parameter.shape, ",")));
    }
    at::Tensor values = at::empty(parameter.shape, at::kFloat);
    file.read(parameter.name, data::Type::float32, values.mutable_data_ptr());
    content.weights.emplace(parameter.name, values);
  }
  if (weights_hash(content.form, content.weights) != file.string_attribute("/", "weights_sha256")) {
    refuse(path, "is damaged: its weights do not match the recorded SHA-256");
  }
  const auto text = [&](const char* key) { return file.string_attribute("/", key); };
  const auto counts = [&](const char* name) {
    if (const auto info = file.info(name); info.shape != data::Shape{content.form.classes}) {
      refuse(path, fmt::format("{} has shape [{}] instead of [{}]", name,
                               fmt::join(info.shape, ","), content.form.classes));
    }
    return file.read<std::int64_t>(name);
  };
  content.origin = {text("data_name"),
                    text("data_split"),
                    text("data_sha256"),
                    text("test_data"),
                    file.integer_attribute("/", "test_count"),
                    file.integer_attribute("/", "test_correct"),
                    {counts("test/assigned"), counts("test/named")}};
  const auto& naming = content.origin.test_naming;
  const bool within = std::equal(naming.named.begin(), naming.named.end(), naming.assigned.begin(),
                                 [](auto n, auto a) { return 0 <= n && n <= a; });
  if (naming.images() != content.origin.test_count || !within) {
    refuse(path, "is damaged: its counts of named test images are inconsistent");
  }
  return content;
}

Classifier::Classifier(const std::filesystem::path& path) : Classifier(path, read(path)) {}

Classifier::Classifier(const std::filesystem::path& path, Content content)
    : FeatureExtractor(path, content.form.image), content_(std::move(content)) {
  set_dimension(kFeatures);
}

at::Tensor Classifier::features_of_chunk(const at::Tensor& pixels) const {
  return classifier_features(content_.weights, pixels);
}

at::Tensor Classifier::probabilities(const at::Tensor& pixels, const ImagesDone& done) const {
  const auto of_chunk = [this](const at::Tensor& chunk) {
    return probabilities_from(features_of_chunk(chunk));
  };
  return in_chunks(pixels, classes(), of_chunk, done);
}

at::Tensor Classifier::probabilities_from(const at::Tensor& features) const {
  return classifier_logits(content_.weights, features).softmax(1);
}

}  // namespace laterna::monitoring
