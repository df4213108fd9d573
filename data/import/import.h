// Importers of foreign data sets, one function per format, each defined in a file of that name
// (idx.cpp, ...; CelebA in folder.cpp). All stream through ImageSetWriter, check what
// they read, and name a bad file in the error. Sizes and crops are exact and the same on every
// machine: see resize() in image_file.h.
#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <string>

namespace laterna::data {

/// Called from time to time with the number of images done and the total number.
using Progress = std::function<void(std::int64_t done, std::int64_t total)>;

struct ImportOptions {
  std::filesystem::path source = {};
  std::filesystem::path output = {};  // a new or empty folder
  std::string split = "train";  // idx, cifar10: train | test selects the files; others: a name
  std::string name = {};   // name of the set; empty: cifar10, celeba, lsun or the source folder's
  int size = 0;            // side in pixels after resizing; 0: unchanged (celeba and lsun: 64)
  int crop = 0;            // folder, celeba: side of the centre square kept before resizing.
                           // 0: celeba 140; folder: the largest square if `size` is given
  int channels = 0;        // folder: 1 grey, 3 colour, 0 as in the first image
  std::int64_t limit = 0;  // maximum number of images; 0: all
};

// All importers throw InputError (bad source; the message names the file) or WriteError (output).

/// Imports MNIST's format, gzipped or not: {train,t10k}-images-idx3-ubyte[.gz] and
/// ...-labels-idx1-ubyte[.gz] in the folder `source`. Names with a dot for the second dash, as on
/// some mirrors, are accepted.
void import_idx(const ImportOptions& options, const Progress& progress = {});
/// Imports CIFAR-10's binary version: data_batch_1..5.bin (train) or test_batch.bin (test) in
/// `source`, or in `source`/cifar-10-batches-bin.
void import_cifar10(const ImportOptions& options, const Progress& progress = {});
/// Imports PNG, JPEG and WebP files under `source`, in path order; or under `source`/`split`, when
/// all folders in `source` are called train, test, val or valid. An image's class is the first
/// folder on its path below that; classes are numbered in name order. If any image is in no folder,
/// the set has no labels. All images must have the same shape after cropping and resizing.
void import_folder(const ImportOptions& options, const Progress& progress = {});
/// Imports CelebA's aligned JPEGs, 178x218, anywhere under `source`: centre crop of 140, resized to
/// 64. No labels.
void import_celeba(const ImportOptions& options, const Progress& progress = {});
/// Imports LSUN's LMDB folder (data.mdb) of encoded images, in key order: largest centre square,
/// resized to 64. No labels.
void import_lsun(const ImportOptions& options, const Progress& progress = {});

/// An importer by the name that the command line has for it.
struct Importer {
  const char* name;
  void (*run)(const ImportOptions& options, const Progress& progress);
};
inline constexpr Importer kImporters[] = {{"idx", import_idx},
                                          {"cifar10", import_cifar10},
                                          {"folder", import_folder},
                                          {"celeba", import_celeba},
                                          {"lsun", import_lsun}};

}  // namespace laterna::data
