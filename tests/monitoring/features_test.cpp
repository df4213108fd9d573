// Feature extractors: identical bits for any split of the work, classifier files, and TorchScript
// networks with various input and output formats.
#include "monitoring/quality/features.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <torch/csrc/jit/api/module.h>

#include "data/error.h"
#include "data/files/hdf5_file.h"
#include "data/files/sha256.h"
#include "monitoring/quality/classifier.h"
#include "tests/data/scratch_folder.h"

namespace laterna::monitoring {
namespace {

namespace fs = std::filesystem;
using data::expect_error;
using data::InputError;
using data::ScratchFolder;

constexpr std::int64_t kChunk = FeatureExtractor::kChunk;

at::Tensor noise(std::int64_t count, const ImageShape& shape) {
  const auto generator = at::detail::createCPUGenerator(7);
  return at::randint(0, 256, {count, shape.channels, shape.height, shape.width}, generator,
                     at::TensorOptions(at::kByte));
}

ClassifierWeights random_weights(const ClassifierForm& form) {
  auto generator = at::detail::createCPUGenerator(11);
  ClassifierWeights weights;
  for (const auto& parameter : classifier_parameters(form)) {
    weights.emplace(parameter.name, at::randn(parameter.shape, generator) * 0.1);
  }
  return weights;
}

fs::path classifier_file(const ScratchFolder& scratch, const ClassifierForm& form) {
  const fs::path path = scratch / "features.h5";
  std::vector<std::int64_t> assigned(static_cast<std::size_t>(form.classes), 8), named = assigned;
  named[1] = 5;
  save_classifier(path, form, random_weights(form),
                  {"glyphs", "train", "abc", "a test", 8 * form.classes, 49, {assigned, named}});
  return path;
}

/// Sets the number of threads and restores the previous one when destroyed.
class Threads {
 public:
  explicit Threads(int count) : before_(at::get_num_threads()) { at::set_num_threads(count); }
  ~Threads() { at::set_num_threads(before_); }

 private:
  int before_;
};

at::Tensor with_threads(int count, const FeatureExtractor& extractor, const at::Tensor& pixels) {
  const Threads threads(count);
  at::Tensor features = extractor.features(pixels);
  EXPECT_EQ(at::get_num_threads(), count);  // restored
  return features;
}

/// Writes a TorchScript file with method `forward` and weights `conv` [4,channels,3,3].
fs::path torchscript_file(const ScratchFolder& scratch, const std::string& forward,
                          std::int64_t channels = 1) {
  torch::jit::Module module("Network");
  auto generator = at::detail::createCPUGenerator(3);
  module.register_buffer("conv", at::randn({4, channels, 3, 3}, generator));
  module.define(forward);
  const fs::path path = scratch / "network.pt";
  module.save(path.string());
  return path;
}

const std::string kPooled = "    return torch.conv2d(x, self.conv).mean([2, 3])\n";

/// Expects identical bits for any split at chunk boundaries and any number of threads.
void expect_same_bits(const FeatureExtractor& extractor) {
  const at::Tensor pixels = noise(5 * kChunk + 9, extractor.shape());
  const at::Tensor all = with_threads(1, extractor, pixels);
  ASSERT_EQ(all.sizes(), (std::vector<std::int64_t>{pixels.size(0), extractor.dimension()}));
  EXPECT_EQ(all.scalar_type(), at::kFloat);
  EXPECT_GT(all.std(0).max().item<float>(), 0);
  for (const int threads : {2, 3, 8}) {
    EXPECT_TRUE(with_threads(threads, extractor, pixels).equal(all)) << threads;
  }
  std::vector<at::Tensor> parts;
  for (const auto& chunk : pixels.split(kChunk)) {
    parts.push_back(with_threads(3, extractor, chunk));
  }
  EXPECT_TRUE(at::cat(parts).equal(all));
  const at::Tensor last = pixels.narrow(0, 2 * kChunk, 3 * kChunk + 9);
  EXPECT_TRUE(extractor.features(last).equal(all.narrow(0, 2 * kChunk, 3 * kChunk + 9)));
}

TEST(Features, ClassifierIsBitIdenticalForAnySplit) {
  const ScratchFolder scratch;
  const ImageShape shape{3, 20, 28};
  expect_same_bits(*FeatureExtractor::open(classifier_file(scratch, {shape, 10}), shape));
}

TEST(Features, TorchScriptIsBitIdenticalForAnySplit) {
  const ScratchFolder scratch;
  expect_same_bits(*FeatureExtractor::open(
      torchscript_file(scratch, "def forward(self, x):\n    x = x / 255 - 0.5\n" + kPooled),
      {1, 12, 12}));
}

TEST(Features, ReportProgress) {
  const ScratchFolder scratch;
  const ImageShape shape{1, 8, 8};
  const auto extractor = FeatureExtractor::open(classifier_file(scratch, {shape, 2}), shape);
  const Threads threads(3);
  std::vector<std::int64_t> told;
  extractor->features(noise(6 * kChunk, shape), [&](std::int64_t done) { told.push_back(done); });
  EXPECT_TRUE(std::is_sorted(told.begin(), told.end()));
  EXPECT_EQ(told.back(), 6 * kChunk);
  const auto stop = [](std::int64_t) { throw std::runtime_error("stop"); };
  expect_error<std::runtime_error>([&] { extractor->features(noise(kChunk, shape), stop); },
                                   {"stop"});
  EXPECT_EQ(at::get_num_threads(), 3);
  EXPECT_EQ(extractor->features(noise(0, shape)).sizes(), (std::vector<std::int64_t>{0, 64}));
}

TEST(Classifier, ReadsBackWhatWasSaved) {
  const ScratchFolder scratch;
  const ClassifierForm form{{3, 16, 24}, 7};
  const fs::path path = classifier_file(scratch, form);
  EXPECT_FALSE(fs::exists(path.string() + ".part"));
  const Classifier classifier(path);
  EXPECT_EQ(classifier.shape(), form.image);
  EXPECT_EQ(classifier.dimension(), 64);
  EXPECT_EQ(classifier.name(), "features.h5");
  EXPECT_EQ(classifier.sha256(), data::sha256_of_file(path));
  EXPECT_EQ(classifier.origin().data_name, "glyphs");
  EXPECT_EQ(classifier.origin().data_split, "train");
  EXPECT_EQ(classifier.origin().data_sha256, "abc");
  EXPECT_EQ(classifier.origin().test_data, "a test");
  EXPECT_EQ(classifier.origin().test_count, 56);
  EXPECT_EQ(classifier.origin().test_correct, 49);
  EXPECT_EQ(classifier.origin().test_naming.images(), 56);
  EXPECT_EQ(classifier.origin().test_naming.named_share(), 53.0 / 56);
  const at::Tensor pixels = noise(kChunk, form.image);
  const auto weights = random_weights(form);
  const at::Tensor features = classifier_features(weights, pixels);
  EXPECT_TRUE(classifier.features(pixels).allclose(features, 1e-4, 1e-5));
  const at::Tensor probabilities = classifier.probabilities(pixels);
  EXPECT_EQ(probabilities.sizes(), (std::vector<std::int64_t>{kChunk, 7}));
  EXPECT_TRUE(probabilities.allclose(classifier_logits(weights, features).softmax(1), 1e-4, 1e-5));
  EXPECT_TRUE(classifier.probabilities_from(classifier.features(pixels))
                  .allclose(probabilities, 1e-6, 1e-7));
}

TEST(Naming, CountsNamedImagesAndEffectiveClasses) {
  Naming naming;
  naming.add(at::tensor({0.95f, 0.03f, 0.02f, 0.2f, 0.7f, 0.1f}).view({2, 3}));
  EXPECT_EQ(naming.assigned, (std::vector<std::int64_t>{1, 1, 0}));
  EXPECT_EQ(naming.named, (std::vector<std::int64_t>{1, 0, 0}));
  EXPECT_EQ(naming.named_share(), 0.5);
  EXPECT_NEAR(naming.effective_classes(), 2, 1e-14);
  naming.add(at::tensor({0.01f, 0.01f, 0.98f}).view({1, 3}));
  EXPECT_NEAR(naming.effective_classes(), 3, 1e-14);
  EXPECT_EQ(naming.images(), 3);
  Naming one;
  one.add(at::tensor({0.0f, 1.0f}).expand({7, 2}));
  EXPECT_EQ(one.effective_classes(), 1);
  EXPECT_EQ(one.named_share(), 1);
}

TEST(Classifier, AcceptsEveryImageSize) {
  const ScratchFolder scratch;
  for (const std::int64_t side : {8, 9, 15, 16, 28, 32, 63, 64}) {
    for (const std::int64_t channels : {1, 3, 4}) {
      const ImageShape shape{channels, side, side + 1};
      const Classifier classifier(classifier_file(scratch, {shape, 3}));
      const at::Tensor features = classifier.features(noise(2, shape));
      EXPECT_TRUE(features.isfinite().all().item<bool>()) << to_text(shape);
      EXPECT_GT((features[0] - features[1]).abs().max().item<float>(), 0) << to_text(shape);
    }
  }
}

TEST(Classifier, RefusesImagesOfAnotherShape) {
  const ScratchFolder scratch;
  const fs::path path = classifier_file(scratch, {{1, 16, 16}, 10});
  expect_error<InputError>(
      [&] {
        FeatureExtractor::open(path, {3, 32, 32});
      },
      {path.string(), "1x16x16", "3x32x32", "features train"});
  expect_error<InputError>(
      [&] {
        Classifier(path).features(noise(1, {1, 16, 8}));
      },
      {path.string(), "1x16x16", "1x16x8"});
}

TEST(Classifier, RefusesOtherFiles) {
  const ScratchFolder scratch;
  const auto refused = [&](const std::string& name, const std::string& why) {
    const fs::path path = scratch / name;
    expect_error<InputError>(
        [&] {
          FeatureExtractor::open(path, {1, 8, 8});
        },
        {path.string(), why});
  };
  refused("missing.h5", "no such file");
  data::put(scratch / "text.h5", "text");
  refused("text.h5", "not an HDF5 file");
  auto images = data::Hdf5File::create(scratch / "images.h5");
  images.set_attribute("/", "format", "laterna-images");
  images.close();
  refused("images.h5", "is not a feature network");
}

TEST(Classifier, RefusesADamagedFile) {
  const ScratchFolder scratch;
  const fs::path path = classifier_file(scratch, {{1, 8, 8}, 2});
  const std::string whole = data::get(path);
  const auto offset = data::Hdf5File::open(path).offset("hidden.weight", data::Type::float32);
  std::string flipped = whole;
  flipped[static_cast<std::size_t>(offset) + 1000] ^= 1;
  data::put(path, flipped);
  expect_error<InputError>([&] { Classifier{path}; }, {path.string(), "damaged", "features train"});
  for (const std::size_t share : {3U, 2U}) {
    data::put(path, whole.substr(0, whole.size() / share));
    expect_error<InputError>([&] { Classifier{path}; }, {path.string()});
  }
}

TEST(TorchScript, IsCalledWithReturnFeatures) {
  const ScratchFolder scratch;
  const auto path =
      torchscript_file(scratch,
                       "def forward(self, x, return_features: bool = False):\n"
                       "    y = torch.conv2d(x, self.conv).mean([2, 3], True)\n"
                       "    if return_features:\n        return y\n    return y.sum(1)\n");
  const ImageShape shape{1, 9, 9};
  const auto extractor = FeatureExtractor::open(path, shape);
  EXPECT_EQ(extractor->dimension(), 4);
  EXPECT_EQ(extractor->name(), "network.pt");
  EXPECT_EQ(extractor->sha256(), data::sha256_of_file(path));
  EXPECT_EQ(extractor->features(noise(3, shape)).sizes(), (std::vector<std::int64_t>{3, 4}));
}

TEST(TorchScript, ReceivesPixelsFrom0To255InItsDtype) {
  const ScratchFolder scratch;
  const ImageShape shape{1, 9, 9};
  const at::Tensor pixels = noise(70, shape);
  const auto means = pixels.to(at::kFloat).flatten(1).mean(1, true);
  for (const char* dtype : {"6", "0"}) {  // TorchScript numbers of float32 and uint8
    const auto path = torchscript_file(
        scratch, fmt::format("def forward(self, x):\n    assert x.dtype == {}\n    return "
                             "x.double().flatten(1).mean(1, True)\n",
                             dtype));
    const auto features = FeatureExtractor::open(path, shape)->features(pixels);
    EXPECT_EQ(features.scalar_type(), at::kFloat);
    EXPECT_TRUE(features.allclose(means)) << dtype;
  }
}

TEST(TorchScript, ReceivesGreyImagesAsThreeChannelsIfNeeded) {
  const ScratchFolder scratch;
  const auto path = torchscript_file(scratch, "def forward(self, x):\n" + kPooled, 3);
  const ImageShape grey{1, 9, 9}, colour{3, 9, 9};
  const at::Tensor pixels = noise(5, grey);
  EXPECT_TRUE(
      FeatureExtractor::open(path, grey)
          ->features(pixels)
          .equal(FeatureExtractor::open(path, colour)->features(pixels.repeat({1, 3, 1, 1}))));
  expect_error<InputError>(
      [&] {
        FeatureExtractor::open(path, {2, 9, 9});
      },
      {path.string(), "2x9x9", "3 channels"});
  expect_error<InputError>(
      [&] {
        FeatureExtractor::open(path, {1, 2, 2});
      },
      {path.string(), "1x2x2", "nor repeated"});
}

TEST(TorchScript, WithOtherReturnValuesIsRefused) {
  const ScratchFolder scratch;
  const std::map<std::string, std::string> answers{
      {"x", "[1,1,9,9]"},    {"x.flatten()", "[81]"}, {"x.flatten(1)[:, :0]", "[1,0]"},
      {"(x, x)", "Tuple"},   {"[x]", "List"},         {"x.flatten(1).long()", "Long"},
      {"\"text\"", "String"}};
  for (const auto& [answer, said] : answers) {
    const auto path =
        torchscript_file(scratch, "def forward(self, x):\n    return " + answer + "\n");
    expect_error<InputError>(
        [&] {
          FeatureExtractor::open(path, {1, 9, 9});
        },
        {path.string(), said, "export a network"});
  }
}

TEST(TorchScript, FailureOnAChunkNamesTheFile) {
  const ScratchFolder scratch;
  const ImageShape shape{1, 9, 9};
  const auto path = torchscript_file(
      scratch,
      "def forward(self, x):\n    assert x.max() < 100, 'too bright'\n    return x.flatten(1)\n");
  const auto extractor = FeatureExtractor::open(path, shape);
  const Threads threads(3);
  expect_error<InputError>([&] { extractor->features(noise(5 * kChunk, shape)); },
                           {path.string(), "too bright"});
  const auto growing = torchscript_file(
      scratch, "def forward(self, x):\n    return x[:, 0, 0, :1].repeat(1, len(x))\n");
  expect_error<InputError>(
      [&] { FeatureExtractor::open(growing, shape)->features(noise(5, shape)); },
      {growing.string(), "1 features for one image"});
}

TEST(TorchScript, RefusesOtherFiles) {
  const ScratchFolder scratch;
  const auto refused = [&](const fs::path& path, std::initializer_list<std::string> why) {
    expect_error<InputError>([&] { FeatureExtractor::open(path, {1, 9, 9}); }, why);
  };
  refused(scratch / "missing.pt", {"missing.pt", "no such file", "features train"});
  refused(scratch.path(), {scratch.path().string(), "no such file"});
  data::put(scratch / "text.pt", "text");
  refused(scratch / "text.pt", {"text.pt", "is not a TorchScript file", "torch.jit.save"});
  const auto path = torchscript_file(scratch, "def forward(self, x):\n" + kPooled);
  data::put_cut(path, scratch / "cut.pt", 500);
  refused(scratch / "cut.pt", {"cut.pt", "damaged", "torch.jit.save"});
  refused(torchscript_file(scratch, "def other(self, x):\n    return x\n"), {"has no forward"});
}

}  // namespace
}  // namespace laterna::monitoring
