// Data sets: writing and mapping, every kind of damage, and what inspect prints.
#include "data/image_set.h"

#include "data/error.h"
#include "data/files/hdf5_file.h"
#include "data/inspect.h"
#include "data/pictures/image_file.h"
#include "tests/data/scratch_folder.h"

namespace laterna::data {
namespace {

constexpr int kCount = 10, kHeight = 2, kWidth = 4, kPixels = 3 * kHeight * kWidth;

// Pixels of image i: 7 i, 7 i + 1, .... The label of image i is i % 4.
std::vector<std::uint8_t> pixels_of(int i) {
  std::vector<std::uint8_t> pixels;
  for (int p = 0; p < kPixels; ++p) pixels.push_back(static_cast<std::uint8_t>(7 * i + p));
  return pixels;
}

// Ten images give shards of 4, 4 and 2.
ImageSetOptions small_options() {
  return {.name = "small",
          .split = "train",
          .channels = 3,
          .height = kHeight,
          .width = kWidth,
          .shard_images = 4};
}

class ImageSetTest : public ::testing::Test {
 protected:
  std::filesystem::path make(const std::string& name, const ImageSetOptions& options) {
    ImageSetWriter writer(folder_ / name, options);
    for (int i = 0; i < kCount; ++i) writer.add(pixels_of(i).data(), i % 4);
    writer.finish();
    return folder_ / name;
  }
  void replace_in_index(const std::string& from, const std::string& to) {
    std::string text = get(folder_ / "set/dataset.json");
    ASSERT_NE(text.find(from), std::string::npos);
    put(folder_ / "set/dataset.json", text.replace(text.find(from), from.size(), to));
  }
  ScratchFolder folder_;
};

TEST_F(ImageSetTest, ReadsBackWhatWasWritten) {
  const ImageSet set = ImageSet::open(make("set", small_options()));
  EXPECT_EQ(set.name(), "small");
  EXPECT_EQ(set.split(), "train");
  EXPECT_EQ(set.count(), kCount);
  EXPECT_EQ(set.channels(), 3);
  EXPECT_EQ(set.height(), kHeight);
  EXPECT_EQ(set.width(), kWidth);
  EXPECT_EQ(set.shards().size(), 3U);
  for (int i = 0; i < kCount; ++i) {
    EXPECT_EQ(set.image(i), pixels_of(i));
    EXPECT_EQ(set.label(i), i % 4);
  }
  EXPECT_NO_THROW(set.verify());
  EXPECT_THROW(set.image(kCount), std::out_of_range);
  EXPECT_THROW(set.image(-1), std::out_of_range);
}

TEST_F(ImageSetTest, ShardsFollowTheSpecification) {
  const Hdf5File shard = Hdf5File::open(make("set", small_options()) / "shard-00002.h5");
  EXPECT_EQ(shard.info("images").shape, (Shape{2, 3, kHeight, kWidth}));
  EXPECT_EQ(shard.info("images").type, Type::uint8);
  EXPECT_EQ(shard.info("labels").type, Type::int32);
  EXPECT_EQ(shard.string_attribute("/", "format"), "laterna-images");
  EXPECT_EQ(shard.integer_attribute("/", "version"), 1);
  EXPECT_EQ(shard.string_attribute("/", "name"), "small");
  EXPECT_EQ(shard.string_attribute("/", "split"), "train");
  const auto pixels = shard.read<std::uint8_t>("images");
  EXPECT_EQ(shard.string_attribute("/", "sha256"), sha256(pixels.data(), pixels.size()));
}

TEST_F(ImageSetTest, HashOfTheSetDoesNotDependOnTheShards) {
  ImageSetOptions whole = small_options();
  whole.shard_images = 0;
  whole.labels = false;
  const ImageSet one = ImageSet::open(make("one", whole));
  EXPECT_EQ(one.sha256(), ImageSet::open(make("set", small_options())).sha256());
  EXPECT_EQ(one.shards().size(), 1U);
  EXPECT_FALSE(one.has_labels());
  EXPECT_THROW(one.label(0), std::out_of_range);
}

TEST_F(ImageSetTest, MovesWithItsOpenShards) {
  ImageSet set = ImageSet::open(make("set", small_options()));
  const ImageSet moved = std::move(set);
  EXPECT_EQ(moved.image(9)[1], 64);
}

TEST_F(ImageSetTest, AChangeWhileInUseIsAnErrorThatNamesTheShard) {
  const auto folder = make("set", small_options());
  const ImageSet set = ImageSet::open(folder);
  EXPECT_NO_THROW(set.image(9));
  std::filesystem::resize_file(folder / "shard-00002.h5", 100);
  expect_error<InputError>([&] { set.image(9); }, {"shard-00002.h5", "cut short", "in use"});
  EXPECT_NO_THROW(set.image(0));
  expect_error<InputError>([&] { set.verify(); }, {"shard-00002.h5", "in use"});
}

TEST_F(ImageSetTest, FlippedByteIsFoundAndTheShardNamed) {
  const auto path = make("set", small_options()) / "shard-00001.h5";
  const auto offset = Hdf5File::open(path).offset("images", Type::uint8);
  std::string bytes = get(path);
  bytes[static_cast<std::size_t>(offset) + 5] ^= 1;
  put(path, bytes);
  const ImageSet set = ImageSet::open(folder_ / "set");
  EXPECT_TRUE(set.shard_is_intact(0));
  EXPECT_FALSE(set.shard_is_intact(1));
  expect_error<InputError>([&] { set.verify(); }, {"shard-00001.h5", "damaged", "checksum"});
  const Description description = describe(set);
  EXPECT_EQ(description.damaged, std::vector<std::string>{path.string()});
  EXPECT_NE(description.text.find("DAMAGED"), std::string::npos);
}

TEST_F(ImageSetTest, MissingFolderIndexAndShardAreNamed) {
  expect_error<InputError>([&] { ImageSet::open(folder_ / "none"); },
                           {"none", "no such data set", "laterna data"});
  make("set", small_options());
  std::filesystem::remove(folder_ / "set/shard-00002.h5");
  expect_error<InputError>([&] { ImageSet::open(folder_ / "set"); },
                           {"shard-00002.h5", "no such file"});
  std::filesystem::remove(folder_ / "set/dataset.json");
  expect_error<InputError>([&] { ImageSet::open(folder_ / "set"); },
                           {"dataset.json", "missing", "did not finish"});
}

TEST_F(ImageSetTest, TruncatedForeignAndSwappedShardsAreNamed) {
  const auto set = make("set", small_options());
  const std::string whole = get(set / "shard-00000.h5");
  put(set / "shard-00000.h5", whole.substr(0, whole.size() - 3));
  expect_error<InputError>([&] { ImageSet::open(set); }, {"shard-00000.h5", "cut short"});
  put(set / "shard-00000.h5", "text");
  expect_error<InputError>([&] { ImageSet::open(set); }, {"shard-00000.h5", "not an HDF5 file"});
  put(set / "shard-00000.h5", get(set / "shard-00001.h5"));
  expect_error<InputError>([&] { ImageSet::open(set); }, {"shard-00000.h5", "another data set"});
  Hdf5File other = Hdf5File::create(set / "shard-00000.h5");
  other.set_attribute("/", "format", "something else");
  other.close();
  expect_error<InputError>([&] { ImageSet::open(set); }, {"shard-00000.h5", "not a shard"});
}

TEST_F(ImageSetTest, WrongNumberOfLabelsIsNamed) {
  const auto path = make("set", small_options()) / "shard-00000.h5";
  const Hdf5File old = Hdf5File::open(path);
  const auto pixels = old.read<std::uint8_t>("images");
  const std::string hash = old.string_attribute("/", "sha256");
  std::filesystem::remove(path);
  Hdf5File file = Hdf5File::create(path);
  file.set_attribute("/", "format", "laterna-images");
  file.set_attribute("/", "version", 1);
  file.set_attribute("/", "sha256", hash);
  file.write("images", {4, 3, kHeight, kWidth}, pixels.data());
  const std::int32_t labels[3] = {0, 1, 2};
  file.write("labels", {3}, labels);
  file.close();
  expect_error<InputError>([&] { ImageSet::open(folder_ / "set"); },
                           {"shard-00000.h5", "3 labels for 4 images"});
}

TEST_F(ImageSetTest, InvalidIndexIsNamed) {
  make("set", small_options());
  replace_in_index("\"count\": 10", "\"count\": 11");
  expect_error<InputError>([&] { ImageSet::open(folder_ / "set"); }, {"dataset.json", "11", "10"});
  replace_in_index("\"count\": 11", "\"many\": 11");
  expect_error<InputError>([&] { ImageSet::open(folder_ / "set"); }, {"dataset.json", "count"});
  replace_in_index("\"version\": 1", "\"version\": 2");
  expect_error<InputError>([&] { ImageSet::open(folder_ / "set"); }, {"dataset.json", "version"});
  put(folder_ / "set/dataset.json", "{ no json");
  expect_error<InputError>([&] { ImageSet::open(folder_ / "set"); }, {"dataset.json", "JSON"});
}

TEST_F(ImageSetTest, WriterRefusesAFolderInUse) {
  make("set", small_options());
  expect_error<WriteError>([&] { make("set", small_options()); }, {"set", "not empty"});
  put(folder_ / "other/notes.txt", "mine");
  expect_error<WriteError>([&] { make("other", small_options()); }, {"other", "not empty"});
  EXPECT_EQ(get(folder_ / "other/notes.txt"), "mine");
  put(folder_ / "file", "");
  expect_error<WriteError>([&] { make("file", small_options()); }, {"file", "cannot be created"});
  expect_error<WriteError>([&] { make("file/set", small_options()); }, {"file/set"});
  expect_error<WriteError>([] { ImageSetWriter("/proc/set", small_options()); }, {"/proc/set"});
}

TEST_F(ImageSetTest, WriterReplacesAnInterruptedImport) {
  {
    ImageSetWriter writer(folder_ / "set", small_options());
    for (int i = 0; i < 6; ++i) writer.add(pixels_of(i).data());
  }
  EXPECT_THROW(ImageSet::open(folder_ / "set"), InputError);
  EXPECT_NO_THROW(ImageSet::open(make("set", small_options())).verify());
}

TEST_F(ImageSetTest, FullDiskIsReportedAndLeavesNoDataSet) {
  ImageSetWriter writer(folder_ / "set", small_options());
  make_full(folder_ / "set/shard-00000.h5.part");
  expect_error<WriteError>(
      [&] {
        for (int i = 0; i < 4; ++i) writer.add(pixels_of(i).data());
      },
      {"shard-00000.h5", "No space left on device"});
  EXPECT_THROW(ImageSet::open(folder_ / "set"), InputError);
  ImageSetWriter other(folder_ / "other", small_options());
  make_full(folder_ / "other/dataset.json.part");
  other.add(pixels_of(0).data());
  expect_error<WriteError>([&] { other.finish(); }, {"dataset.json", "No space left on device"});
  EXPECT_THROW(ImageSet::open(folder_ / "other"), InputError);
}

TEST_F(ImageSetTest, EmptySetIsRefused) {
  ImageSetWriter writer(folder_ / "set", small_options());
  expect_error<InputError>([&] { writer.finish(); }, {"set", "no images"});
}

TEST_F(ImageSetTest, DescriptionAndPicture) {
  const ImageSet set = ImageSet::open(make("set", small_options()));
  const Description description = describe(set);
  for (const char* part :
       {"small, split train", "10 of 3x2x4", "0 (3)", "3 (2)", set.sha256().c_str(), "mean 43.00",
        "shard-00002.h5  2 images  checksum verified"}) {
    EXPECT_NE(description.text.find(part), std::string::npos) << part << "\n" << description.text;
  }
  EXPECT_TRUE(description.damaged.empty());
  write_sample_picture(set, folder_ / "samples.png");
  const Image picture = read_image(folder_ / "samples.png");
  EXPECT_EQ(picture.channels, 3);
  EXPECT_EQ(picture.height, 2 * (2 * 32 + 2) + 2);
  EXPECT_EQ(picture.pixels[static_cast<std::size_t>(2 * picture.width + 2)], 0);
}

}  // namespace
}  // namespace laterna::data
