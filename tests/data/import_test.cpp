// The importers on small generated sources, on every kind of bad source, and on the real MNIST and
// CIFAR-10 where ../shared/data holds them.
#include "data/import/import.h"

#include <lmdb.h>
#include <zlib.h>

#include <cstdlib>
#include <numeric>

#include "data/error.h"
#include "data/image_set.h"
#include "data/pictures/image_file.h"
#include "tests/data/pictures.h"
#include "tests/data/scratch_folder.h"

namespace laterna::data {
namespace {

/// Returns ../shared/data beside the repository, which holds real data sets on some machines.
std::filesystem::path shared_data() { return LATERNA_SOURCES "/../shared/data"; }

std::string big_endian(std::uint32_t value) {
  std::string bytes;
  for (int shift = 24; shift >= 0; shift -= 8) bytes += static_cast<char>(value >> shift);
  return bytes;
}

// IDX files of `count` images of 4x6 pixels; pixel p of image i is (i + p) % 256, its label i % 10.
std::string idx_images(std::uint32_t count) {
  std::string bytes = big_endian(0x803) + big_endian(count) + big_endian(4) + big_endian(6);
  for (std::uint32_t i = 0; i < count; ++i) {
    for (std::uint32_t p = 0; p < 24; ++p) bytes += static_cast<char>(i + p);
  }
  return bytes;
}
std::string idx_labels(std::uint32_t count) {
  std::string bytes = big_endian(0x801) + big_endian(count);
  for (std::uint32_t i = 0; i < count; ++i) bytes += static_cast<char>(i % 10);
  return bytes;
}

void put_gzip(const std::filesystem::path& path, const std::string& bytes) {
  const gzFile file = gzopen(path.c_str(), "wb");
  gzwrite(file, bytes.data(), static_cast<unsigned>(bytes.size()));
  gzclose(file);
}

class ImportTest : public ::testing::Test {
 protected:
  ImportTest() { std::filesystem::create_directories(folder_ / "source"); }
  ImportOptions options(const std::string& output = "set") {
    return {.source = folder_ / "source", .output = folder_ / output};
  }
  // Runs an import, which must throw InputError and leave no data set.
  template <typename Import>
  void expect_bad(Import import, const ImportOptions& options,
                  std::initializer_list<std::string> parts) {
    expect_error<InputError>([&] { import(options, {}); }, parts);
    EXPECT_FALSE(std::filesystem::exists(options.output / "dataset.json"));
    std::filesystem::remove_all(options.output);
  }
  void put_idx(const std::string& images, const std::string& labels) {
    put(folder_ / "source/train-images-idx3-ubyte", images);
    put(folder_ / "source/train-labels-idx1-ubyte", labels);
  }
  ScratchFolder folder_;
};

TEST_F(ImportTest, IdxPlainAndCompressed) {
  put_idx(idx_images(25), idx_labels(25));
  put_gzip(folder_ / "source/t10k-images.idx3-ubyte.gz", idx_images(11));
  put_gzip(folder_ / "source/t10k-labels-idx1-ubyte.gz", idx_labels(11));
  std::int64_t done = 0;
  import_idx(options(), [&](std::int64_t now, std::int64_t) { done = now; });
  EXPECT_EQ(done, 25);
  const ImageSet train = ImageSet::open(folder_ / "set");
  train.verify();
  EXPECT_EQ(train.count(), 25);
  EXPECT_EQ(train.name(), "source");
  EXPECT_EQ(train.channels(), 1);
  EXPECT_EQ(train.height(), 4);
  EXPECT_EQ(train.width(), 6);
  EXPECT_EQ(train.image(24)[23], 47);
  EXPECT_EQ(train.label(24), 4);
  ImportOptions test = options("test");
  test.split = "test";
  test.size = 2;
  test.limit = 10;
  import_idx(test);
  const ImageSet small = ImageSet::open(folder_ / "test");
  EXPECT_EQ(small.count(), 10);
  EXPECT_EQ(small.image_bytes(), 4);
}

TEST_F(ImportTest, IdxMissingTruncatedForeign) {
  expect_bad(import_idx, options(), {"source", "no train-images-idx3-ubyte"});
  put_idx(idx_images(9).substr(0, 100), idx_labels(9));
  expect_bad(import_idx, options(), {"train-images-idx3-ubyte", "cut short"});
  put_idx(idx_images(9), idx_labels(9).substr(0, 12));
  expect_bad(import_idx, options(), {"train-labels-idx1-ubyte", "cut short"});
  put_idx(idx_images(9).substr(0, 10), idx_labels(9));
  expect_bad(import_idx, options(), {"train-images-idx3-ubyte", "cut short"});
  put_idx("some other file", idx_labels(9));
  expect_bad(import_idx, options(), {"train-images-idx3-ubyte", "not an IDX file of images"});
  put_idx(idx_labels(9), idx_images(9));
  expect_bad(import_idx, options(), {"train-images-idx3-ubyte", "0x00000801", "0x00000803"});
  put_idx(idx_images(9) + "more", idx_labels(9));
  expect_bad(import_idx, options(), {"train-images-idx3-ubyte", "longer"});
  ImportOptions other = options();
  other.split = "valid";
  expect_bad(import_idx, other, {"'valid'", "train or test"});
}

TEST_F(ImportTest, IdxTruncatedGzip) {
  put_gzip(folder_ / "whole.gz", idx_images(500));
  put_cut(folder_ / "whole.gz", folder_ / "source/train-images-idx3-ubyte.gz", 500);
  put_gzip(folder_ / "source/train-labels-idx1-ubyte.gz", idx_labels(500));
  expect_bad(import_idx, options(), {"train-images-idx3-ubyte.gz", "cut short"});
}

TEST_F(ImportTest, IdxWithDifferentNumbersOfLabelsAndImages) {
  put_idx(idx_images(9), idx_labels(8));
  expect_bad(import_idx, options(),
             {"train-labels-idx1-ubyte", "8 labels", "train-images-idx3-ubyte", "9 images"});
}

TEST_F(ImportTest, OutputInUseOrUnwritable) {
  put_idx(idx_images(9), idx_labels(9));
  put(folder_ / "set/keep", "");
  expect_error<WriteError>([&] { import_idx(options()); }, {"set", "not empty"});
  ImportOptions under = options("source/train-images-idx3-ubyte/set");
  expect_error<WriteError>([&] { import_idx(under); }, {"cannot be created"});
}

std::string cifar_record(int label, int shade) {
  return static_cast<char>(label) + std::string(1024, static_cast<char>(shade)) +
         std::string(1024, static_cast<char>(shade + 1)) +
         std::string(1024, static_cast<char>(shade + 2));
}

TEST_F(ImportTest, Cifar10Binary) {
  const auto batches = folder_ / "source/cifar-10-batches-bin";
  for (int i = 1; i <= 5; ++i) {
    put(batches / ("data_batch_" + std::to_string(i) + ".bin"),
        cifar_record(i, 10 * i) + cifar_record(0, 100));
  }
  put(batches / "test_batch.bin", cifar_record(9, 7));
  import_cifar10(options());
  const ImageSet train = ImageSet::open(folder_ / "set");
  train.verify();
  EXPECT_EQ(train.count(), 10);
  EXPECT_EQ(train.channels(), 3);
  EXPECT_EQ(train.label(8), 5);
  EXPECT_EQ(train.image(8)[1024], 51);
  ImportOptions test = options("test");
  test.split = "test";
  test.source = batches;  // the inner folder is accepted too
  test.size = 16;
  import_cifar10(test);
  EXPECT_EQ(ImageSet::open(folder_ / "test").label(0), 9);
  EXPECT_EQ(ImageSet::open(folder_ / "test").height(), 16);
}

TEST_F(ImportTest, Cifar10MissingTruncatedForeign) {
  ImportOptions test = options();
  test.split = "test";
  expect_bad(import_cifar10, test, {"test_batch.bin", "missing"});
  put(folder_ / "source/test_batch.bin", cifar_record(1, 2).substr(1));
  expect_bad(import_cifar10, test, {"test_batch.bin", "3072 bytes", "cut short"});
  put(folder_ / "source/test_batch.bin", cifar_record(1, 2) + cifar_record(77, 2));
  expect_bad(import_cifar10, test, {"test_batch.bin", "label 77", "record 1"});
}

TEST_F(ImportTest, FolderOfClassesInNameOrder) {
  for (const char* name : {"dog/b.png", "cat/deep/a.png", "cat/z.png"}) {
    std::filesystem::create_directories((folder_ / "source" / name).parent_path());
    Image image = test_picture(3, 8, 8);
    image.pixels[0] = static_cast<std::uint8_t>(name[4]);
    write_png(folder_ / "source" / name, image);
  }
  put(folder_ / "source/dog/a.jpg", encode_jpeg(test_picture(1, 8, 8)));  // grey among colour
  put(folder_ / "source/dog/notes.txt", "no picture");
  import_folder(options());
  const ImageSet set = ImageSet::open(folder_ / "set");
  set.verify();
  ASSERT_EQ(set.count(), 4);
  EXPECT_EQ(set.channels(), 3);
  EXPECT_EQ(set.image(0)[0], 'd');  // cat/deep/a.png
  EXPECT_EQ(set.image(1)[0], 'z');
  EXPECT_EQ(set.image(3)[0], 'b');
  EXPECT_EQ(set.label(1), 0);
  EXPECT_EQ(set.label(2), 1);
}

TEST_F(ImportTest, FolderWithSplitsImportsTheRequestedOne) {
  for (const char* split : {"train", "test"}) {
    std::filesystem::create_directories(folder_ / "source" / split / "cat");
    write_png(folder_ / "source" / split / "cat/1.png",
              test_picture(1, split[1] == 'r' ? 4 : 6, 4));
  }
  ImportOptions test = options();
  test.split = "test";
  import_folder(test);
  const ImageSet set = ImageSet::open(folder_ / "set");
  EXPECT_EQ(set.height(), 6);
  EXPECT_EQ(set.name(), "source");
  EXPECT_TRUE(set.has_labels());
}

TEST_F(ImportTest, FolderCropsAndResizes) {
  write_png(folder_ / "source/a.png", test_picture(3, 20, 30));
  write_png(folder_ / "source/b.png", test_picture(3, 24, 16));
  expect_bad(import_folder, options(), {"b.png", "24x16", "20x30", "size"});
  ImportOptions sized = options();
  sized.size = 8;
  sized.channels = 1;
  import_folder(sized);
  const ImageSet set = ImageSet::open(folder_ / "set");
  EXPECT_FALSE(set.has_labels());
  EXPECT_EQ(set.image_bytes(), 64);
  const Image expected = to_channels(resize(centre_crop(test_picture(3, 20, 30), 20, 20), 8, 8), 1);
  EXPECT_TRUE(std::equal(expected.pixels.begin(), expected.pixels.end(), set.image(0).begin()));
  ImportOptions cropped = options("cropped");
  cropped.crop = 18;
  expect_bad(import_folder, cropped, {"b.png", "crop of 18"});
  cropped.crop = 16;
  import_folder(cropped);
  EXPECT_EQ(ImageSet::open(folder_ / "cropped").width(), 16);
}

TEST_F(ImportTest, FolderMissingEmptyDamaged) {
  ImportOptions none = options();
  none.source = folder_ / "none";
  expect_bad(import_folder, none, {"none", "no such folder"});
  expect_bad(import_folder, options(), {"source", "no PNG, JPEG or WebP"});
  write_png(folder_ / "source/a.png", test_picture(3, 20, 20));
  put_cut(folder_ / "source/a.png", folder_ / "source/b.png", 60);
  expect_bad(import_folder, options(), {"b.png", "truncated PNG"});
  put(folder_ / "source/b.png", "foreign");
  expect_bad(import_folder, options(), {"b.png", "not a PNG"});
}

TEST_F(ImportTest, CelebaCropsTheFace) {
  const Image face = test_picture(3, 218, 178);
  put(folder_ / "source/000001.jpg", encode_jpeg(face));
  import_celeba(options());
  const ImageSet set = ImageSet::open(folder_ / "set");
  EXPECT_EQ(set.name(), "celeba");
  EXPECT_EQ(set.height(), 64);
  EXPECT_FALSE(set.has_labels());
  const Image read = read_image(folder_ / "source/000001.jpg");
  const Image expected = resize(centre_crop(read, 140, 140), 64, 64);
  EXPECT_TRUE(std::equal(expected.pixels.begin(), expected.pixels.end(), set.image(0).begin()));
}

// Writes entries (key, value) to a new LMDB environment.
void put_lmdb(const std::filesystem::path& folder,
              const std::vector<std::pair<std::string, std::string>>& entries) {
  std::filesystem::create_directories(folder);
  MDB_env* environment = nullptr;
  MDB_txn* transaction = nullptr;
  MDB_dbi table = 0;
  mdb_env_create(&environment);
  ASSERT_EQ(mdb_env_open(environment, folder.c_str(), 0, 0644), 0);
  mdb_txn_begin(environment, nullptr, 0, &transaction);
  mdb_dbi_open(transaction, nullptr, 0, &table);
  for (const auto& [key, bytes] : entries) {
    MDB_val name{key.size(), const_cast<char*>(key.data())};
    MDB_val value{bytes.size(), const_cast<char*>(bytes.data())};
    ASSERT_EQ(mdb_put(transaction, table, &name, &value, 0), 0);
  }
  ASSERT_EQ(mdb_txn_commit(transaction), 0);
  mdb_env_close(environment);
}

TEST_F(ImportTest, LsunReadsEncodedImagesInKeyOrder) {
  const std::string webp = encode_webp(test_picture(3, 40, 60));
  put_lmdb(folder_ / "source", {{"b", encode_jpeg(test_picture(3, 50, 30))}, {"a", webp}});
  ImportOptions small = options();
  small.size = 16;
  import_lsun(small);
  const ImageSet set = ImageSet::open(folder_ / "set");
  set.verify();
  EXPECT_EQ(set.count(), 2);
  EXPECT_EQ(set.name(), "lsun");
  const Image expected = resize(centre_crop(decode_image(bytes_of(webp), "a"), 40, 40), 16, 16);
  EXPECT_TRUE(std::equal(expected.pixels.begin(), expected.pixels.end(), set.image(0).begin()));
}

TEST_F(ImportTest, LsunMissingForeignDamaged) {
  expect_bad(import_lsun, options(), {"source", "no data.mdb"});
  put(folder_ / "source/data.mdb", "no LMDB file at all");
  expect_bad(import_lsun, options(), {"source", "LMDB"});
  std::filesystem::remove(folder_ / "source/data.mdb");
  const std::string webp = encode_webp(test_picture(3, 40, 60));
  put_lmdb(folder_ / "source", {{"cut", webp.substr(0, webp.size() / 2)}});
  expect_bad(import_lsun, options(), {"source", "'cut'", "WebP"});
  const auto whole = std::filesystem::file_size(folder_ / "source/data.mdb");
  std::filesystem::resize_file(folder_ / "source/data.mdb", whole - 1);
  expect_bad(import_lsun, options(), {"source", "cut short", std::to_string(whole)});
}

TEST_F(ImportTest, RealMnist) {
  if (!std::filesystem::exists(shared_data() / "mnist")) GTEST_SKIP() << "no ../shared/data/mnist";
  ImportOptions mnist = options();
  mnist.source = shared_data() / "mnist";
  import_idx(mnist);
  const ImageSet set = ImageSet::open(folder_ / "set");
  set.verify();
  EXPECT_EQ(set.count(), 60000);
  EXPECT_EQ(set.name(), "mnist");
  EXPECT_EQ(set.label(0), 5);  // the well-known first digits: 5 0 4 1 9
  EXPECT_EQ(set.label(4), 9);
  double sum = 0;
  for (std::int64_t i = 0; i < set.count(); ++i) {
    const auto image = set.image(i);
    sum = std::accumulate(image.begin(), image.end(), sum);
  }
  EXPECT_NEAR(sum / (60000.0 * 784 * 255), 0.1307, 1e-4);
  mnist.split = "test";
  mnist.output = folder_ / "test";
  import_idx(mnist);
  EXPECT_EQ(ImageSet::open(folder_ / "test").count(), 10000);
}

TEST_F(ImportTest, RealCifar10Images) {
  const auto archive = shared_data() / "cifar10/cifar10-jpg.tar.xz";
  if (!std::filesystem::exists(archive)) GTEST_SKIP() << "no ../shared/data/cifar10";
  // Unpacks about the first thousand training images only: the whole archive takes seconds.
  const std::string command = "xz -dc " + archive.string() + " 2>/dev/null | head -c 2000000 | " +
                              "tar -x -C " + (folder_ / "source").string() + " 2>/dev/null";
  [[maybe_unused]] const int cut_off = std::system(command.c_str());
  ImportOptions cifar = options();
  cifar.limit = 500;
  import_folder(cifar);
  const ImageSet set = ImageSet::open(folder_ / "set");
  set.verify();
  EXPECT_EQ(set.count(), 500);
  EXPECT_EQ(set.image_bytes(), 3 * 32 * 32);
  EXPECT_TRUE(set.has_labels());
}

}  // namespace
}  // namespace laterna::data
