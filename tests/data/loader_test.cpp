// The global order and the loader: permutations, independence of the division of the batch over
// ranks and of the first step, mirroring, and errors of the thread.
#include "data/loader.h"

#include <algorithm>
#include <chrono>
#include <numeric>
#include <set>
#include <thread>

#include "data/error.h"
#include "data/partition.h"
#include "data/pictures/glyphs.h"
#include "tests/data/scratch_folder.h"

namespace laterna::data {
namespace {

TEST(Partition, EveryEpochIsADifferentPermutation) {
  const std::int64_t n = 1000;
  Partition partition(3, n);
  std::set<std::vector<std::int64_t>> orders;
  for (std::int64_t epoch = 0; epoch < 4; ++epoch) {
    std::vector<std::int64_t> order;
    for (std::int64_t i = 0; i < n; ++i) {
      order.push_back(partition.at(static_cast<std::uint64_t>(epoch * n + i)));
    }
    orders.insert(order);
    std::sort(order.begin(), order.end());
    std::vector<std::int64_t> all(n);
    std::iota(all.begin(), all.end(), 0);
    EXPECT_EQ(order, all);
  }
  EXPECT_EQ(orders.size(), 4U);
}

TEST(Partition, DependsOnlyOnSeedAndEpoch) {
  Partition forward(7, 50), elsewhere(7, 50), other(8, 50);
  for (std::uint64_t position = 0; position < 200; ++position) forward.at(position);
  EXPECT_EQ(elsewhere.at(3 * 50 + 11), forward.at(3 * 50 + 11));  // independent of earlier calls
  EXPECT_EQ(elsewhere.at(11), forward.at(11));                    // an earlier epoch again
  EXPECT_NE(other.permutation(0), forward.permutation(0));
  // If this permutation changes, so does the data order of every run.
  EXPECT_EQ(Partition(0, 8).permutation(0), (std::vector<std::uint32_t>{5, 4, 1, 0, 7, 6, 2, 3}));
}

TEST(Partition, StepsStraddleEpochsAndBatchesMayExceedTheSet) {
  Partition partition(1, 5);
  EXPECT_EQ(partition.at(1, 4, 3), partition.at(7));
  std::vector<int> seen(5);
  for (std::int64_t i = 0; i < 20; ++i) ++seen[static_cast<std::size_t>(partition.at(0, 20, i))];
  EXPECT_EQ(seen, std::vector<int>(5, 4));
  EXPECT_EQ(Partition(1, 1).at(1000), 0);
}

TEST(Partition, EveryImageIsEquallyLikelyAtAPosition) {
  std::vector<int> first(6);
  Partition partition(2, 6);
  for (std::uint64_t epoch = 0; epoch < 6000; ++epoch) {
    ++first[static_cast<std::size_t>(partition.at(epoch * 6 + 5))];
  }
  for (const int count : first) EXPECT_NEAR(count, 1000, 130);
}

TEST(Partition, RejectsInvalidCounts) {
  EXPECT_THROW(Partition(0, 0), std::invalid_argument);
  EXPECT_THROW(Partition(0, std::int64_t{1} << 32), std::invalid_argument);
}

class LoaderTest : public ::testing::Test {
 protected:
  LoaderTest() : set_(make()) {}
  ImageSet make() {
    make_glyphs({.size = 8, .count = 30}, folder_ / "glyphs");
    return ImageSet::open(folder_ / "glyphs");
  }
  // Returns the pixels of `steps` global batches. Each is the concatenation of the ranks' slices,
  // whose sizes are `slices`.
  std::vector<std::vector<std::uint8_t>> global(const std::vector<std::int64_t>& slices,
                                                std::uint64_t start, int steps, bool flip) {
    const std::int64_t batch = std::accumulate(slices.begin(), slices.end(), std::int64_t{0});
    std::vector<std::vector<std::uint8_t>> all(static_cast<std::size_t>(steps));
    std::int64_t first = 0;
    for (const std::int64_t count : slices) {
      Loader loader(set_, {.seed = 5,
                           .global_batch = batch,
                           .first = first,
                           .count = count,
                           .flip = flip,
                           .start_step = start});
      for (std::size_t s = 0; s < all.size(); ++s) {
        const Batch part = loader.next();
        EXPECT_EQ(part.step, start + s);
        EXPECT_EQ(part.indices.size(), static_cast<std::size_t>(count));
        all[s].insert(all[s].end(), part.pixels.begin(), part.pixels.end());
      }
      first += count;
    }
    return all;
  }
  ScratchFolder folder_;
  ImageSet set_;
};

TEST_F(LoaderTest, ReturnsTheImagesOfTheGlobalOrder) {
  Loader loader(set_, {.seed = 5, .global_batch = 8, .first = 2, .count = 3});
  Partition partition(5, set_.count());
  for (std::uint64_t step = 0; step < 12; ++step) {
    const Batch batch = loader.next();
    for (std::int64_t i = 0; i < 3; ++i) {
      const std::int64_t index = partition.at(step, 8, 2 + i);
      EXPECT_EQ(batch.indices[static_cast<std::size_t>(i)], index);
      const auto image = set_.image(index);
      EXPECT_TRUE(std::equal(image.begin(), image.end(), batch.pixels.begin() + i * 64));
    }
  }
}

TEST_F(LoaderTest, SamplesDoNotDependOnTheSlicesOrOnTheFirstStep) {
  const auto whole = global({7}, 0, 10, true);
  EXPECT_EQ(global({4, 3}, 0, 10, true), whole);
  EXPECT_EQ(global({1, 1, 1, 1, 1, 1, 1, 0, 0}, 0, 10, true), whole);
  const auto later = global({3, 2, 2}, 6, 4, true);
  EXPECT_EQ(later, std::vector(whole.begin() + 6, whole.end()));
  EXPECT_NE(global({7}, 0, 10, false), whole);
}

TEST_F(LoaderTest, MirrorsHalfOfTheSamplesLeftToRight) {
  Loader loader(set_, {.seed = 5, .global_batch = 30, .first = 0, .count = 30, .flip = true});
  int mirrored = 0;
  for (std::uint64_t step = 0; step < 20; ++step) {
    const Batch batch = loader.next();
    for (std::int64_t i = 0; i < 30; ++i) {
      const auto image = set_.image(batch.indices[static_cast<std::size_t>(i)]);
      const bool flipped = is_flipped(5, step, i);
      mirrored += flipped;
      for (int y = 0; y < 8; ++y) {
        for (int x = 0; x < 8; ++x) {
          ASSERT_EQ(batch.pixels[static_cast<std::size_t>(i * 64 + y * 8 + x)],
                    image[y * 8 + (flipped ? 7 - x : x)]);
        }
      }
    }
  }
  EXPECT_NEAR(mirrored, 300, 60);
}

TEST_F(LoaderTest, RankWithoutSamplesGetsEmptyBatches) {
  Loader loader(set_, {.seed = 5, .global_batch = 2, .first = 2, .count = 0, .start_step = 9});
  const Batch batch = loader.next();
  EXPECT_EQ(batch.step, 9U);
  EXPECT_TRUE(batch.pixels.empty());
}

TEST_F(LoaderTest, PrefetchesSoThatNextDoesNotWait) {
  Loader loader(set_, {.seed = 5, .global_batch = 8, .first = 0, .count = 8});
  const auto waits = [&] {  // unless the thread gets to run during the sleep
    std::this_thread::sleep_for(std::chrono::milliseconds(10));
    const double before = loader.waited_seconds();
    loader.next();
    return loader.waited_seconds() != before;
  };
  int calls = 1;
  while (waits() && calls < 1000) ++calls;
  EXPECT_LT(calls, 1000);
}

TEST_F(LoaderTest, NextRethrowsAFailureOfTheThread) {
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
  GTEST_SKIP() << "sanitizers end the program when an allocation fails";
#endif
  const std::int64_t huge = std::int64_t{1} << 50;
  Loader loader(set_, {.seed = 5, .global_batch = huge, .first = 0, .count = huge});
  EXPECT_THROW(loader.next(), std::bad_alloc);
  EXPECT_THROW(loader.next(), std::bad_alloc);
}

TEST_F(LoaderTest, CanBeDestroyedInAnyState) {
  for (int i = 0; i < 50; ++i) {
    Loader loader(set_, {.seed = 5, .global_batch = 8, .first = 0, .count = 8, .depth = 1 + i % 3});
    if (i % 2 == 0) loader.next();
  }
}

TEST_F(LoaderTest, RejectsASliceOutsideTheBatch) {
  EXPECT_THROW(Loader(set_, {.global_batch = 8, .first = 6, .count = 3}), std::invalid_argument);
  EXPECT_THROW(Loader(set_, {.global_batch = 8, .first = -1, .count = 3}), std::invalid_argument);
}

}  // namespace
TEST(Share, SharesAreEvenContiguousAndComplete) {
  for (const std::int64_t batch : {1, 7, 8, 128}) {
    for (const int ranks : {1, 2, 3, 9, 200}) {
      std::int64_t next = 0, smallest = batch, last = batch;
      for (int rank = 0; rank < ranks; ++rank) {
        const Share share = share_of(batch, rank, ranks);
        EXPECT_EQ(share.first, next);
        EXPECT_LE(share.count, last);  // larger shares first
        next += share.count;
        last = share.count;
        smallest = std::min(smallest, share.count);
      }
      EXPECT_EQ(next, batch);
      EXPECT_LE(share_of(batch, 0, ranks).count - smallest, 1);
    }
  }
}

}  // namespace laterna::data
