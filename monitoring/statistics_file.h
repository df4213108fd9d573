// Statistics of features as the field exchanges them: an .npz file (a zip of numpy's .npy files)
// with `mu` [d] and `sigma` [d,d] float64, which numpy.load and pytorch-fid read, and we read
// theirs. Ours also say what the statistics are of, so that a distance between things that do not
// belong together is refused: `count` int64, `data_sha256`, `split`, `size` ("1x28x28") and
// `extractor_sha256` (numpy strings); and may hold reference features for the figures that need
// samples: `features` float32 [m,d].
#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include "monitoring/frechet.h"

namespace laterna::monitoring {

/// What statistics are of; a file of another program's says none of it.
struct StatisticsFacts {
  std::optional<std::string> data_sha256, split;
  std::optional<std::string> size;              // channels x height x width
  std::optional<std::string> extractor_sha256;  // of the network's file
};

struct StatisticsFile {
  Statistics statistics;  // count 0 where the file does not say
  StatisticsFacts facts;
  std::optional<at::Tensor> features;  // [m,d] float32
};

/// Stored or deflated; float32 or float64, either order of dimensions, .npy versions 1 and 2.
/// Throws data::InputError naming the file and the array: no zip, damaged, missing array, other
/// shape or type (objects are never unpickled), not finite, not symmetric.
StatisticsFile read_statistics(const std::filesystem::path& path);

/// Durably: the old file or the whole new one. The same content gives the same bytes. Throws
/// data::WriteError naming the file.
void write_statistics(const std::filesystem::path& path, const StatisticsFile& file);

/// What the two state differently, a line each with both values; empty when they are of the same
/// data, split, size and extractor. A fact that one of them lacks differs.
std::vector<std::string> differences(const StatisticsFacts& a, const StatisticsFacts& b);

/// The same for two files whose distance is asked for: of size and extractor alone, where both say
/// them, and of the dimension. Not empty: a distance would mean nothing.
std::vector<std::string> comparison_differences(const StatisticsFile& a, const StatisticsFile& b);

}  // namespace laterna::monitoring
