// Foreign data becomes a data set of ours. One function a kind, each in a file of its own
// (import_idx.cpp, ...); all stream through ImageSetWriter, check what they read, and name the file
// that is wrong. Sizes and crops are exact and the same on every machine: see resize() in
// image_file.h.
#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <string>

namespace laterna::data {

/// Called now and then with images done and images in all.
using Progress = std::function<void(std::int64_t done, std::int64_t total)>;

struct ImportOptions {
  std::filesystem::path source = {};
  std::filesystem::path output = {};  // a new or empty folder
  std::string split = "train";        // idx, cifar10: train | test picks the files; others: a name
  std::string name = {};   // of the set; empty: "cifar10", "celeba", "lsun", or the source folder's
  int size = 0;            // pixels of a side; 0: as it is (celeba and lsun: 64)
  int crop = 0;            // folder, celeba: side of the centre square kept before resizing.
                           // 0: celeba 140; folder: the largest square if `size` is given
  int channels = 0;        // folder: 1 grey, 3 colour, 0 as the first image
  std::int64_t limit = 0;  // at most so many images; 0: all
};

/// All throw InputError (bad source: the file is named) or WriteError (output).

/// MNIST's format, gzip or not: {train,t10k}-images-idx3-ubyte[.gz] and ...-labels-idx1-ubyte[.gz]
/// in the folder `source` (a dot for the second dash is accepted, as some mirrors have it).
void import_idx(const ImportOptions& options, const Progress& progress = {});
/// CIFAR-10's binary version: data_batch_1..5.bin or test_batch.bin in `source`, or in
/// `source`/cifar-10-batches-bin.
void import_cifar10(const ImportOptions& options, const Progress& progress = {});
/// PNG, JPEG and WebP files under `source`, in path order; or under `source`/`split`, when all
/// folders in `source` are called train, test, val or valid. An image's class is the first folder
/// below that on its path; classes are numbered in name order. An image in no folder: no labels.
/// All images must come out in one shape.
void import_folder(const ImportOptions& options, const Progress& progress = {});
/// CelebA's aligned JPEGs, 178x218, anywhere under `source`: centre crop of 140, resized to 64. No
/// labels.
void import_celeba(const ImportOptions& options, const Progress& progress = {});
/// LSUN's LMDB folder (data.mdb) of encoded images, in key order: largest centre square, resized
/// to 64. No labels.
void import_lsun(const ImportOptions& options, const Progress& progress = {});

}  // namespace laterna::data
