// Checkpoints in the run folder (spec section 4): checkpoints/step-000012000/ with one HDF5 file a
// writer and manifest.json, which is written last, after everything else is on disk, and names
// every file with size and SHA-256 and every parameter's place. Without its manifest a folder is
// debris of a crash, never a checkpoint.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <filesystem>
#include <functional>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "dist/world.h"
#include "launch/config.h"
#include "model/optimizer.h"
#include "model/parameters.h"

namespace CLI {
class App;
}

namespace laterna::launch {

/// What training needs to go on bit for bit, besides the configuration: everything drawn at random
/// and the order of the data are functions of seed and step.
struct TrainingState {
  std::int64_t step = 0;  // steps done
  const model::Parameters& parameters;
  model::Optimizer& optimizer;
};

/// Where a step's checkpoint lies, complete or not.
std::filesystem::path checkpoint_folder(const std::filesystem::path& run, std::int64_t step);
/// The name of the file that a rank writes.
std::string checkpoint_file(std::int64_t rank);
/// The flat buffers of a checkpoint: a group of its file each, parameter by parameter.
std::map<std::string, at::Tensor> checkpoint_buffers(const TrainingState& state);
/// Whether writer `rank` writes it: its candidates, and rank 0 what all hold.
bool is_written_by(std::int64_t rank, const model::ParameterSpec& spec);

/// Whether the step's checkpoint is there, with its manifest.
bool is_complete(const std::filesystem::path& run, std::int64_t step);
/// The complete checkpoints of a run folder, oldest first.
std::vector<std::int64_t> complete_checkpoints(const std::filesystem::path& run);

/// Another host's commit may take its time to show on a shared file system: returns when this rank
/// sees the checkpoint. `waiting` is called between two looks. Throws data::InputError after so
/// many seconds.
void wait_for_checkpoint(const std::filesystem::path& run, std::int64_t step, double seconds,
                         const std::function<void()>& waiting);

/// Deletes all complete checkpoints but the newest `keep` and the best, and the debris of crashes.
/// What cannot be deleted stays for the next time.
void prune_checkpoints(const std::filesystem::path& run, std::int64_t keep);

/// The checkpoint with the lowest FID, which pruning keeps: checkpoints/best.json.
struct BestCheckpoint {
  std::int64_t step;
  double fid;
  std::string measured;  // how; another way's FID is not comparable
};
/// Nothing when the file is none, or its checkpoint is no longer there.
std::optional<BestCheckpoint> best_checkpoint(const std::filesystem::path& run);
/// Throws data::WriteError.
void set_best_checkpoint(const std::filesystem::path& run, const BestCheckpoint& best);

/// What a checkpoint's manifest says.
struct Manifest {
  std::int64_t step;
  Config config;
  std::string data_sha256;
  struct File {
    std::string name, sha256;
    std::int64_t bytes;
  };
  std::vector<File> files;
  std::map<std::string, std::string> file_of;  // of each parameter
};

/// Reads the manifest of a step. Throws data::InputError naming it.
Manifest read_manifest(const std::filesystem::path& run, std::int64_t step);
/// Takes a damaged checkpoint out of the way, to step-N.damaged, for somebody to look at. Throws
/// data::WriteError.
void set_aside_checkpoint(const std::filesystem::path& run, std::int64_t step);
/// Compares the files with sizes and hashes on record. Throws data::InputError naming the first
/// that differs and saying what can be done. `goes_on` is called after each file.
void verify_checkpoint(
    const std::filesystem::path& run, const Manifest& manifest,
    const std::function<void()>& goes_on = [] {});
/// Fills the parameters that `state` holds, and its optimiser, from a verified checkpoint of any
/// layout.
void load_checkpoint(const std::filesystem::path& run, const Manifest& manifest,
                     TrainingState& state);

/// The flags --run, --step and --raw of the verbs that read a run's weights.
struct RunWeights {
  std::string run;
  std::int64_t step = -1;  // -1: the newest
  bool raw = false;        // the weights themselves rather than their running average
};
void add_weights_options(CLI::App& verb, RunWeights& weights);

struct LoadedWeights {
  Config config;
  std::int64_t step;
  model::Parameters parameters;
};
/// Which candidates are wanted, told of what every rank holds: that decides what is selected when.
using Need = std::function<model::Holds(const model::Parameters& shared)>;
/// Verifies and reads them, of the candidates all or those that `need` names. Throws
/// data::InputError when the run has no such checkpoint.
LoadedWeights load_weights(const RunWeights& weights, at::ScalarType dtype,
                           at::Device device = at::kCPU, const Need& need = {});

}  // namespace laterna::launch
