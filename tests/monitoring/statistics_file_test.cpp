// Statistics as .npz: our files, a file written by numpy, and all kinds of invalid files.
#include "monitoring/quality/statistics_file.h"

#include <gtest/gtest.h>
#include <openssl/evp.h>
#include <sys/stat.h>
#include <zip.h>

#include <cmath>
#include <limits>

#include "data/error.h"
#include "monitoring/quality/npy.h"
#include "tests/data/scratch_folder.h"
#include "tests/monitoring/features.h"

namespace laterna::monitoring {
namespace {

namespace fs = std::filesystem;
using data::expect_error;
using data::ScratchFolder;

using Arrays = std::vector<std::pair<std::string, std::string>>;  // name.npy, bytes

void pack(const fs::path& path, const Arrays& arrays, zip_int32_t compression = ZIP_CM_DEFLATE) {
  zip_t* archive = zip_open(path.c_str(), ZIP_CREATE | ZIP_TRUNCATE, nullptr);
  ASSERT_NE(archive, nullptr);
  for (const auto& [name, bytes] : arrays) {
    auto* source = zip_source_buffer(archive, bytes.data(), bytes.size(), 0);
    const auto index = zip_file_add(archive, name.c_str(), source, 0);
    zip_set_file_compression(archive, index, compression, 0);
  }
  ASSERT_EQ(zip_close(archive), 0);
}

/// Returns .npy bytes with this header, whether or not it is correct for the data.
std::string npy(const std::string& header, const std::string& data, int version = 1) {
  std::string bytes = "\x93NUMPY";
  bytes += {char(version), '\0', char(header.size() % 256), char(header.size() / 256)};
  if (version == 2) bytes += std::string(2, '\0');
  return bytes + header + data;
}

template <typename T>
std::string raw(const std::vector<T>& values) {
  return {reinterpret_cast<const char*>(values.data()), values.size() * sizeof(T)};
}

const std::string kMu = make_npy(at::tensor({1.0, 2.0}, at::kDouble));
const std::string kSigma = make_npy(at::tensor({2.0, 0.5, 0.5, 1.0}, at::kDouble).view({2, 2}));

StatisticsFile example() {
  const at::Tensor features = normal_features(30, 7, 0).to(at::kFloat);
  return {statistics_of(features),
          {.data_sha256 = std::string(64, 'a'),
           .split = "",
           .size = "1x28x28",
           .extractor_sha256 = "Gl\xC3\xBChw\xC3\xBCrmchen"},
          features};
}

TEST(StatisticsFile, ReadsBackWhatWasWritten) {
  const ScratchFolder scratch;
  const StatisticsFile written = example();
  write_statistics(scratch / "a.npz", written);
  const StatisticsFile read = read_statistics(scratch / "a.npz");
  EXPECT_TRUE(at::equal(read.statistics.mean, written.statistics.mean));
  EXPECT_TRUE(at::equal(read.statistics.covariance, written.statistics.covariance));
  EXPECT_EQ(read.statistics.count, 30);
  EXPECT_TRUE(at::equal(read.features.value(), written.features.value()));
  EXPECT_EQ(differences(read.facts, written.facts), std::vector<std::string>{});
  write_statistics(scratch / "b.npz", read);
  EXPECT_EQ(data::get(scratch / "a.npz"), data::get(scratch / "b.npz"));
  EXPECT_FALSE(fs::exists(scratch / "a.npz.part"));
}

TEST(StatisticsFile, FactsAndFeaturesAreOptional) {
  const ScratchFolder scratch;
  write_statistics(scratch / "a.npz", {{at::ones({3}), at::eye(3), 0}, {}, {}});
  const StatisticsFile read = read_statistics(scratch / "a.npz");
  EXPECT_TRUE(at::equal(read.statistics.covariance, at::eye(3, at::kDouble)));
  EXPECT_EQ(read.statistics.count, 0);
  EXPECT_FALSE(read.facts.data_sha256 || read.facts.split || read.facts.size || read.features ||
               read.facts.extractor_sha256);
}

// numpy 2.2.6: mu = float32 [1, 2.5], sigma = numpy.asfortranarray(float32 [[2, .5], [.5, 1]]),
// numpy.savez_compressed(file, mu=mu, sigma=sigma, split="t\u00e9st")
constexpr const char* kByNumpy =
    "UEsDBC0AAAAIAAAAIQA47i9y//////////8GABQAbXUubnB5AQAQAIgAAAAAAAAATAAAAAAAAACb7BfqGxDJyFDGUK2e"
    "klqcXKRupaBuk2airqOgnpZfVFKUmBefX5SSChJ3S8wpTgWKF2ckFqQC+RpGOpo6CrUKFAAuBoYGewYGBQcAUEsDBC0A"
    "AAAIAAAAIQDNBJkB//////////8JABQAc2lnbWEubnB5AQAQAJAAAAAAAAAATwAAAAAAAACb7BfqGxDJyFDGUK2eklqc"
    "XKRupaBuk2airqOgnpZfVFKUmBefX5SSChIPKSpNBQoXZyQWpAK5GkY6CkaaOgq1CuQDLgYGBgcgtofgBnsAUEsDBC0A"
    "AAAIAAAAIQC6afQV//////////8JABQAc3BsaXQubnB5AQAQAJAAAAAAAAAATQAAAAAAAACb7BfqGxDJyFDGUK2eklqc"
    "XKRupaBuE2qirqOgnpZfVFKUmBefX5SSChJ3S8wpTgWKF2ckFqQC+RqaOgq1ChQBrhIGBoaXQFwMxCA2AFBLAQItAy0A"
    "AAAIAAAAIQA47i9yTAAAAIgAAAAGAAAAAAAAAAAAAACAAQAAAABtdS5ucHlQSwECLQMtAAAACAAAACEAzQSZAU8AAACQ"
    "AAAACQAAAAAAAAAAAAAAgAGEAAAAc2lnbWEubnB5UEsBAi0DLQAAAAgAAAAhALpp9BVNAAAAkAAAAAkAAAAAAAAAAAAA"
    "AIABDgEAAHNwbGl0Lm5weVBLBQYAAAAAAwADAKIAAACWAQAAAAA=";

TEST(StatisticsFile, ReadsAFileWrittenByNumpy) {
  const ScratchFolder scratch;
  const std::string text = kByNumpy;
  std::string bytes(text.size() / 4 * 3, '\0');
  ASSERT_EQ(EVP_DecodeBlock(reinterpret_cast<unsigned char*>(bytes.data()),
                            reinterpret_cast<const unsigned char*>(text.data()), int(text.size())),
            int(bytes.size()));
  bytes.resize(590);  // without the padding
  data::put(scratch / "numpy.npz", bytes);
  const StatisticsFile read = read_statistics(scratch / "numpy.npz");
  EXPECT_TRUE(at::equal(read.statistics.mean, at::tensor({1.0, 2.5}, at::kDouble)));
  EXPECT_TRUE(at::equal(read.statistics.covariance,
                        at::tensor({2.0, 0.5, 0.5, 1.0}, at::kDouble).view({2, 2})));
  EXPECT_EQ(read.facts.split, "t\xC3\xA9st");
  EXPECT_EQ(read.statistics.count, 0);
}

TEST(StatisticsFile, ReadsEitherOrderVersionAndCompression) {
  const ScratchFolder scratch;
  const std::string features = npy("{'shape': (2, 3), 'fortran_order': True, 'descr': '<f8'}\n",
                                   raw<double>({1, 4, 2, 5, 3, 6}), 2);
  const std::string mu =
      npy("{'descr':'<f4','fortran_order':False,'shape':(3,),}\n", raw<float>({1, 2, 3}), 2);
  const std::string count =
      npy("{'descr': '<i4', 'fortran_order': False, 'shape': (), }\n", raw<std::int32_t>({9}));
  for (const auto compression : {ZIP_CM_STORE, ZIP_CM_DEFLATE}) {
    pack(scratch / "a.npz",
         {{"count.npy", count},
          {"features.npy", features},
          {"mu.npy", mu},
          {"sigma.npy", make_npy(at::eye(3, at::kFloat))},
          {"other.npy", "not looked at"}},
         compression);
    const StatisticsFile read = read_statistics(scratch / "a.npz");
    EXPECT_TRUE(at::equal(read.statistics.mean, at::tensor({1.0, 2.0, 3.0}, at::kDouble)));
    EXPECT_EQ(read.statistics.count, 9);
    EXPECT_TRUE(at::equal(read.features.value(), at::arange(1, 7, at::kFloat).view({2, 3})));
  }
}

TEST(StatisticsFile, ErrorNamesADamagedFile) {
  const ScratchFolder scratch;
  const fs::path path = scratch / "a.npz";
  const auto refused = [&](std::initializer_list<std::string> parts) {
    expect_error<data::InputError>([&] { read_statistics(path); }, {"a.npz"});
    expect_error<data::InputError>([&] { read_statistics(path); }, parts);
  };
  refused({"No such file"});
  data::put(path, "no zip at all, though long enough to hold one: ..........................");
  refused({"Not a zip archive"});
  write_statistics(path, example());
  const std::string whole = data::get(path);
  const at::Tensor mean = example().statistics.mean;
  for (std::size_t size = 0; size < whole.size(); size += 17) {
    data::put(path, whole.substr(0, size));
    EXPECT_THROW(read_statistics(path), data::InputError) << size;
  }
  refused({"not readable as .npz"});
  for (std::size_t at = 0; at < whole.size(); at += 13) {  // bytes such as dates do not matter
    std::string changed = whole;
    changed[at] ^= 0x55;
    data::put(path, changed);
    try {
      EXPECT_TRUE(at::equal(read_statistics(path).statistics.mean, mean));
    } catch (const data::InputError&) {
    }
  }
  std::string flipped = whole;
  flipped[whole.find("sigma.npy") + 300] ^= 1;  // in the data of sigma
  data::put(path, flipped);
  refused({"'sigma'", "CRC"});
}

TEST(StatisticsFile, ErrorNamesAWrongArray) {
  const ScratchFolder scratch;
  const fs::path path = scratch / "a.npz";
  const auto refused = [&](const Arrays& arrays, std::initializer_list<std::string> parts) {
    pack(path, arrays);
    expect_error<data::InputError>([&] { read_statistics(path); }, parts);
  };
  const auto f8 = [](const std::string& shape) {
    return "{'descr': '<f8', 'fortran_order': False, 'shape': " + shape + ", }\n";
  };
  const std::string two = raw<double>({1, 2});
  refused({{"sigma.npy", kSigma}}, {"a.npz", "'mu'", "missing"});
  refused({{"mu.npy", kMu}}, {"a.npz", "'sigma'", "missing"});
  refused({{"mu.npy", kSigma}, {"sigma.npy", kSigma}}, {"'mu'", "(2, 2)"});
  refused({{"mu.npy", kMu}, {"sigma.npy", kMu}}, {"'sigma'", "(2)", "(2, 2)"});
  refused({{"mu.npy", make_npy(at::ones({3}))}, {"sigma.npy", kSigma}}, {"'sigma'", "(3, 3)"});
  refused({{"mu.npy", kMu}, {"sigma.npy", kSigma}, {"features.npy", make_npy(at::ones({4, 3}))}},
          {"'features'", "(4, 3)"});
  refused({{"mu.npy", npy(f8("(0,)"), "")}, {"sigma.npy", kSigma}}, {"'mu'", "(0)"});
  refused({{"mu.npy", npy(f8("(2,)"), two.substr(1))}, {"sigma.npy", kSigma}}, {"'mu'", "15"});
  refused({{"mu.npy", npy(f8("(2,)"), two + "x")}, {"sigma.npy", kSigma}}, {"'mu'", "17"});
  refused({{"mu.npy", npy(f8("(999999999999, 999999999999)"), two)}, {"sigma.npy", kSigma}},
          {"'mu'", "999999999999"});
  refused({{"mu.npy", npy(f8("(99999999999999999999,)"), two)}, {"sigma.npy", kSigma}},
          {"'mu'", "impossible"});
  refused({{"mu.npy", kMu.substr(0, 9)}, {"sigma.npy", kSigma}}, {"'mu'", "cut short"});
  refused({{"mu.npy", kMu.substr(0, 40)}, {"sigma.npy", kSigma}}, {"'mu'", "header is cut short"});
  refused({{"mu.npy", npy("{'descr': 1}\n", two)}, {"sigma.npy", kSigma}}, {"'mu'", "parsed"});
  refused({{"mu.npy", npy(f8("(2,)"), two, 3)}, {"sigma.npy", kSigma}}, {"'mu'", "version 3"});
  refused({{"mu.npy", npy(std::string(5000, ' '), two)}, {"sigma.npy", kSigma}},
          {"'mu'", "longer"});
  refused({{"mu.npy", npy("{'descr': '|O', 'fortran_order': False, 'shape': (2,), }\n", two)},
           {"sigma.npy", kSigma}},
          {"'mu'", "Python objects"});
  refused({{"mu.npy", npy("{'descr': '>f8', 'fortran_order': False, 'shape': (2,), }\n", two)},
           {"sigma.npy", kSigma}},
          {"'mu'", ">f8"});
  refused({{"mu.npy", make_npy(at::tensor({1, 2}, at::kLong))}, {"sigma.npy", kSigma}},
          {"'mu'", "integers"});
  refused({{"mu.npy", kMu}, {"sigma.npy", kSigma}, {"count.npy", make_npy(at::scalar_tensor(9.0))}},
          {"'count'", "integers"});
  refused({{"mu.npy", kMu}, {"sigma.npy", kSigma}, {"split.npy", kMu}}, {"'split'", "string"});
}

TEST(StatisticsFile, ErrorNamesAnArrayWithInvalidValues) {
  const ScratchFolder scratch;
  const fs::path path = scratch / "a.npz";
  StatisticsFile file = example();
  const auto refused = [&](std::initializer_list<std::string> parts) {
    write_statistics(path, file);
    expect_error<data::InputError>([&] { read_statistics(path); }, parts);
    file = example();
  };
  file.statistics.mean[2] = std::nan("");
  refused({"a.npz", "'mu'", "finite"});
  file.statistics.covariance[2][1] = std::numeric_limits<double>::infinity();
  refused({"'sigma'", "finite"});
  file.statistics.covariance[2][1] += 0.1;
  refused({"'sigma'", "symmetric"});
  (*file.features)[3][1] = std::nan("");
  refused({"'features'", "finite"});
  file.statistics.count = 1;
  refused({"'count'"});
}

TEST(StatisticsFile, FailedWriteKeepsTheOldFile) {
  const ScratchFolder scratch;
  const fs::path path = scratch / "a.npz";
  write_statistics(path, example());
  const std::string before = data::get(path);
  data::make_full(scratch / "a.npz.part");
  StatisticsFile other = example();
  other.facts.size = "3x32x32";
  expect_error<data::WriteError>([&] { write_statistics(path, other); },
                                 {"a.npz", "free some space"});
  EXPECT_EQ(data::get(path), before);
}

TEST(StatisticsFile, ReportsDifferences) {
  StatisticsFile a = example(), b = example();
  EXPECT_TRUE(differences(a.facts, b.facts).empty());
  EXPECT_TRUE(comparison_differences(a, b).empty());
  b.facts.split = "test";
  b.facts.data_sha256.reset();
  EXPECT_EQ(differences(a.facts, b.facts),
            (std::vector<std::string>{"data_sha256: '" + std::string(64, 'a') + "' and not stated",
                                      "split: '' and 'test'"}));
  EXPECT_TRUE(comparison_differences(a, b).empty());  // different data is what a distance compares
  b.facts.size = "3x32x32";
  b.facts.extractor_sha256.reset();
  b.statistics.mean = at::zeros({9}, at::kDouble);
  EXPECT_EQ(comparison_differences(a, b),
            (std::vector<std::string>{"size: '1x28x28' and '3x32x32'", "dimension: 7 and 9"}));
}

}  // namespace
}  // namespace laterna::monitoring
