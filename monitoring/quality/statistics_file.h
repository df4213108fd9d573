// Statistics of features in the common exchange format: an .npz file (a zip of numpy's .npy files)
// with `mu` [d] and `sigma` [d,d] float64. numpy.load and pytorch-fid read our files, and we read
// theirs. Our files also state what the statistics describe, so that a meaningless distance is
// refused: `count` int64, `data_sha256`, `split`, `size` ("1x28x28") and `extractor_sha256` (numpy
// strings). A file may also hold reference features for the figures that need samples: `features`
// float32 [m,d].
#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include "monitoring/quality/frechet.h"

namespace laterna::monitoring {

/// What statistics describe; a file written by another program states none of it.
struct StatisticsFacts {
  std::optional<std::string> data_sha256, split;
  std::optional<std::string> size;              // channels x height x width
  std::optional<std::string> extractor_sha256;  // of the extractor's file
};

struct StatisticsFile {
  Statistics statistics;  // count 0 where the file does not state it
  StatisticsFacts facts;
  std::optional<at::Tensor> features;  // [m,d] float32
};

/// Reads a file: entries stored or deflated; float32 or float64 in C or Fortran order; .npy
/// versions 1 and 2. Throws data::InputError naming the file and the array when the file is not a
/// zip or is damaged, or when an array is missing, has another shape or type (objects are never
/// unpickled), or is not finite or not symmetric.
StatisticsFile read_statistics(const std::filesystem::path& path);

/// Writes the file durably and atomically replaces an existing one. The same content gives the same
/// bytes. Throws data::WriteError naming the file.
void write_statistics(const std::filesystem::path& path, const StatisticsFile& file);

/// Returns a line with both values for each fact that differs; empty when a and b have the same
/// data, split, size and extractor. A fact that only one of them states differs.
std::vector<std::string> differences(const StatisticsFacts& a, const StatisticsFacts& b);

/// Returns the differences, as differences() does, that make a distance between two files
/// meaningless: of size and extractor, where both files state them, and of the dimension.
std::vector<std::string> comparison_differences(const StatisticsFile& a, const StatisticsFile& b);

}  // namespace laterna::monitoring
