// Hdf5File reads back what it wrote, also converted, in slices and from the file's bytes; it reads
// files of other software, and reports every kind of invalid file.
#include "data/files/hdf5_file.h"

#include <hdf5.h>
#include <signal.h>
#include <sys/resource.h>

#include <cstdlib>
#include <cstring>
#include <thread>

#include "data/error.h"
#include "tests/data/scratch_folder.h"

// HDF5 1.10 itself leaks a few buffers when a file cannot be flushed.
extern "C" const char* __lsan_default_suppressions() { return "leak:libhdf5"; }

namespace laterna::data {
namespace {

class Hdf5FileTest : public ::testing::Test {
 protected:
  // Writes a file with every kind of object and returns its path.
  std::filesystem::path sample() {
    Hdf5File file = Hdf5File::create(folder_ / "sample.h5");
    file.write<float>("x", {2, 3}, kNumbers);
    file.write<float>("gradient/blocks.0.time.weight", {6}, kNumbers);
    file.write<double>("scalar", {}, &kPi);
    file.set_attribute("/", "config", "[model]\nwidth = 8\n");
    file.set_attribute("/", "version", 1);
    file.set_attribute("x", "empty", "");
    file.close();
    return file.path();
  }

  static constexpr float kNumbers[6] = {0, 1, 2.5F, -3, 4e6F, 5};
  static constexpr double kPi = 3.141592653589793;
  ScratchFolder folder_;
};

TEST_F(Hdf5FileTest, ReadsBackWhatWasWritten) {
  const Hdf5File file = Hdf5File::open(sample());
  EXPECT_EQ(file.read<float>("x"), std::vector<float>(kNumbers, kNumbers + 6));
  EXPECT_EQ(file.info("x").shape, (Shape{2, 3}));
  EXPECT_TRUE(file.info("x").exact);
  EXPECT_EQ(file.info("x").type, Type::float32);
  EXPECT_EQ(file.read<double>("scalar"), std::vector<double>{kPi});
  EXPECT_TRUE(file.info("scalar").shape.empty());
  EXPECT_EQ(file.string_attribute("/", "config"), "[model]\nwidth = 8\n");
  EXPECT_EQ(file.integer_attribute("/", "version"), 1);
  EXPECT_EQ(file.string_attribute("x", "empty"), "");
  EXPECT_TRUE(file.has_attribute("/", "config"));
  EXPECT_FALSE(file.has_attribute("/", "none"));
  EXPECT_FALSE(file.has_attribute("none", "none"));
}

TEST_F(Hdf5FileTest, NamesWithDotsAndGroups) {
  const Hdf5File file = Hdf5File::open(sample());
  EXPECT_TRUE(file.contains("gradient/blocks.0.time.weight"));
  EXPECT_TRUE(file.contains("/gradient"));
  EXPECT_FALSE(file.contains("gradient/blocks"));
  EXPECT_FALSE(file.contains("none/at/all"));
  EXPECT_EQ(file.datasets(), (std::vector<std::string>{"scalar", "x"}));
  EXPECT_EQ(file.datasets("gradient"), (std::vector<std::string>{"blocks.0.time.weight"}));
  EXPECT_TRUE(file.datasets("none").empty());
}

TEST_F(Hdf5FileTest, ConvertsNumbers) {
  const Hdf5File file = Hdf5File::open(sample());
  EXPECT_EQ(file.read<double>("x")[2], 2.5);
  EXPECT_EQ(file.read<std::int64_t>("x")[4], 4000000);
}

TEST_F(Hdf5FileTest, RowsAreWrittenAndReadInSlices) {
  const std::int64_t rows = 1000;
  Hdf5File file = Hdf5File::create(folder_ / "rows.h5");
  file.create_dataset("big", Type::int32, {rows, 2});
  for (std::int32_t row = 0; row < rows; row += 100) {
    std::vector<std::int32_t> slice;
    for (std::int32_t i = row; i < row + 100; ++i) slice.insert(slice.end(), {i, -i});
    file.write_rows("big", row, 100, slice.data());
  }
  file.close();
  const Hdf5File again = Hdf5File::open(folder_ / "rows.h5");
  std::vector<std::int64_t> part(6);
  again.read_rows("big", 499, 3, Type::int64, part.data());
  EXPECT_EQ(part, (std::vector<std::int64_t>{499, -499, 500, -500, 501, -501}));
  expect_error<InputError>([&] { again.read_rows("big", 999, 2, Type::int64, part.data()); },
                           {"rows.h5", "'big'", "rows 999 to 1000"});
}

TEST_F(Hdf5FileTest, EmptyDataSets) {
  Hdf5File file = Hdf5File::create(folder_ / "empty.h5");
  file.write<float>("none", {0, 3}, nullptr);
  file.close();
  EXPECT_TRUE(Hdf5File::open(folder_ / "empty.h5").read<float>("none").empty());
}

TEST_F(Hdf5FileTest, OffsetPointsToTheBytes) {
  const auto path = sample();
  const Hdf5File file = Hdf5File::open(path);
  const std::string bytes = get(path);
  const auto offset = static_cast<std::size_t>(file.offset("x", Type::float32));
  EXPECT_EQ(std::memcmp(bytes.data() + offset, kNumbers, sizeof kNumbers), 0);
  expect_error<InputError>([&] { file.offset("x", Type::uint8); }, {"'x'", "uint8"});
}

TEST_F(Hdf5FileTest, EqualContentGivesEqualFiles) {
  const std::string once = get(sample());
  EXPECT_EQ(once, get(sample()));
}

// Writes a file as h5py may: variable-length strings, big-endian 16-bit numbers, chunks.
TEST_F(Hdf5FileTest, ReadsFilesOfOtherSoftware) {
  const auto path = folder_ / "foreign.h5";
  const hid_t file = H5Fcreate(path.c_str(), H5F_ACC_TRUNC, H5P_DEFAULT, H5P_DEFAULT);
  const hid_t text = H5Tcopy(H5T_C_S1);
  H5Tset_size(text, H5T_VARIABLE);
  const hid_t scalar = H5Screate(H5S_SCALAR);
  const hid_t attribute = H5Acreate2(file, "config", text, scalar, H5P_DEFAULT, H5P_DEFAULT);
  const char* config = "a = 1";
  H5Awrite(attribute, text, &config);
  const hsize_t four = 4;
  const hid_t space = H5Screate_simple(1, &four, nullptr);
  const hid_t chunks = H5Pcreate(H5P_DATASET_CREATE);
  H5Pset_chunk(chunks, 1, &four);
  const std::int16_t values[4] = {1, -2, 3, 300};
  const hid_t big = H5Dcreate2(file, "big", H5T_STD_I16BE, space, H5P_DEFAULT, chunks, H5P_DEFAULT);
  H5Dwrite(big, H5T_NATIVE_INT16, H5S_ALL, H5S_ALL, H5P_DEFAULT, values);
  const hid_t words =
      H5Dcreate2(file, "words", text, scalar, H5P_DEFAULT, H5P_DEFAULT, H5P_DEFAULT);
  for (const hid_t set : {big, words}) H5Dclose(set);
  H5Aclose(attribute);
  H5Fclose(file);

  const Hdf5File read = Hdf5File::open(path);
  EXPECT_EQ(read.string_attribute("/", "config"), "a = 1");
  EXPECT_EQ(read.read<float>("big"), (std::vector<float>{1, -2, 3, 300}));
  EXPECT_FALSE(read.info("big").exact);
  EXPECT_EQ(read.info("big").type, Type::int32);
  expect_error<InputError>([&] { read.offset("big", Type::int32); }, {"'big'", "int32"});
  expect_error<InputError>([&] { read.read<float>("words"); }, {"'words'", "numbers"});
}

TEST_F(Hdf5FileTest, MissingForeignAndTruncatedFilesAreDistinguished) {
  const auto path = sample();
  expect_error<InputError>([&] { Hdf5File::open(folder_ / "none.h5"); }, {"none.h5", "no such"});
  expect_error<InputError>([&] { Hdf5File::open(folder_.path()); }, {"folder"});
  put(folder_ / "text.h5", "I am no HDF5 file, though I am called so.\n");
  expect_error<InputError>([&] { Hdf5File::open(folder_ / "text.h5"); },
                           {"text.h5", "not an HDF5 file"});
  put(folder_ / "nothing.h5", "");
  expect_error<InputError>([&] { Hdf5File::open(folder_ / "nothing.h5"); },
                           {"nothing.h5", "not an HDF5 file"});
  const std::size_t size = get(path).size();
  for (const std::size_t bytes : {size - 1, size / 2, std::size_t{100}}) {
    put_cut(path, folder_ / "cut.h5", bytes);
    expect_error<InputError>([&] { Hdf5File::open(folder_ / "cut.h5"); }, {"cut.h5", "cut short"});
  }
}

TEST_F(Hdf5FileTest, MissingObjectsAreNamed) {
  const Hdf5File file = Hdf5File::open(sample());
  expect_error<InputError>([&] { file.read<float>("y"); },
                           {"sample.h5", "'y'", "not in this file"});
  expect_error<InputError>([&] { file.info("gradient"); }, {"'gradient'", "not a data set"});
  expect_error<InputError>([&] { file.string_attribute("/", "none"); }, {"no attribute 'none'"});
  expect_error<InputError>([&] { file.integer_attribute("/", "config"); }, {"not an integer"});
  expect_error<InputError>([&] { file.string_attribute("/", "version"); }, {"not a string"});
}

TEST_F(Hdf5FileTest, UnwritablePlacesAreNamed) {
  put(folder_ / "file", "");
  expect_error<WriteError>([&] { Hdf5File::create(folder_ / "file/x.h5"); },
                           {"file/x.h5", "Not a directory"});
  expect_error<WriteError>([] { Hdf5File::create("/proc/x.h5"); }, {"/proc/x.h5"});
}

TEST_F(Hdf5FileTest, FullDiskIsReported) {
  make_full(folder_ / "full.h5");
  const std::vector<float> much(1 << 20);
  expect_error<WriteError>(
      [&] {
        Hdf5File file = Hdf5File::create(folder_ / "full.h5");
        file.write<float>("much", {1 << 20}, much.data());
        file.close();
      },
      {"full.h5", "No space left on device"});
  // Small content stays in HDF5's buffers until close(), which must report the failure.
  expect_error<WriteError>(
      [&] {
        Hdf5File file = Hdf5File::create(folder_ / "full.h5");
        file.set_attribute("/", "version", 1);
        file.close();
      },
      {"full.h5", "No space left on device"});
  // HDF5 is still usable afterwards.
  EXPECT_EQ(Hdf5File::open(sample()).integer_attribute("/", "version"), 1);
}

// After a write to a full disk, the program must still be able to exit without a crash.
TEST_F(Hdf5FileTest, ProgramExitsNormallyAfterAFullDisk) {
  const auto fill_and_exit = [&] {
    // A limit on the file size stands in for a disk that fills up during a write.
    const rlimit limit{300000, 300000};
    signal(SIGXFSZ, SIG_IGN);
    setrlimit(RLIMIT_FSIZE, &limit);
    const std::vector<float> much(1 << 20);
    int failures = 0;
    for (const bool large : {true, false}) {
      try {
        Hdf5File file = Hdf5File::create(folder_ / "full.h5");
        if (large) file.write<float>("much", {1 << 20}, much.data());
        for (int i = 0; i < 3000; ++i) file.write<double>("x" + std::to_string(i), {}, &kPi);
        file.close();
      } catch (const WriteError&) {
        ++failures;
      }
    }
    std::exit(failures == 2 ? 0 : 1);
  };
  EXPECT_EXIT(fill_and_exit(), ::testing::ExitedWithCode(0), "");
}

TEST_F(Hdf5FileTest, IsSilentAndUsableOnEveryThread) {
  const auto path = sample();
  ::testing::internal::CaptureStderr();
  std::thread([&] {
    EXPECT_EQ(Hdf5File::open(path).read<float>("x")[5], 5);
    EXPECT_THROW(Hdf5File::open(path).info("none"), InputError);
  }).join();
  EXPECT_EQ(::testing::internal::GetCapturedStderr(), "");
}

TEST_F(Hdf5FileTest, MovesAndClosesOnce) {
  Hdf5File file = Hdf5File::create(folder_ / "moved.h5");
  Hdf5File other = std::move(file);
  other.write<float>("x", {6}, kNumbers);
  other.close();
  other.close();
  EXPECT_THROW(other.info("x"), std::logic_error);
  EXPECT_EQ(Hdf5File::open(folder_ / "moved.h5").info("x").elements(), 6);
}

}  // namespace
}  // namespace laterna::data
