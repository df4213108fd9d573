// Checkpoints in the run folder (spec section 4). A checkpoint is a folder such as
// checkpoints/step-000012000/ with one HDF5 file per writing rank and manifest.json, which is
// written last, after everything else is on disk, and names every file with its size and SHA-256
// and the file of every parameter. A folder without a manifest was left by a crash and is never a
// checkpoint.
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

/// What training needs, besides the configuration, to resume bit for bit. All random draws and the
/// order of the data are functions of seed and step, so they need no state.
struct TrainingState {
  std::int64_t step = 0;  // completed steps
  const model::Parameters& parameters;
  model::Optimizer& optimizer;
};

/// Returns the folder of a step's checkpoint, whether it exists or not.
std::filesystem::path checkpoint_folder(const std::filesystem::path& run, std::int64_t step);
/// Returns the name of the file that `rank` writes into a checkpoint: rank-00000.h5, ...
std::string checkpoint_file(std::int64_t rank);
/// Returns the flat buffers that a checkpoint stores, by the HDF5 group in which each is written
/// parameter by parameter.
std::map<std::string, at::Tensor> checkpoint_buffers(const TrainingState& state);
/// Returns whether `rank` writes this parameter that it holds: every writer writes its candidates,
/// and rank 0 also what all ranks hold.
bool is_written_by(std::int64_t rank, const model::ParameterSpec& spec);

/// Returns whether the step's checkpoint has its manifest.
bool is_complete(const std::filesystem::path& run, std::int64_t step);
/// Returns the steps of the complete checkpoints of a run folder, oldest first.
std::vector<std::int64_t> complete_checkpoints(const std::filesystem::path& run);

/// Waits until this rank sees the checkpoint: on a shared file system another host's commit may
/// show late. Calls `waiting` between two attempts. Throws data::InputError after `seconds`.
void wait_for_checkpoint(const std::filesystem::path& run, std::int64_t step, double seconds,
                         const std::function<void()>& waiting);

/// Deletes all complete checkpoints but the newest `keep` and the best, and incomplete ones that
/// crashes left. What cannot be deleted is left for the next call.
void prune_checkpoints(const std::filesystem::path& run, std::int64_t keep);

/// The checkpoint with the lowest FID, recorded in checkpoints/best.json; pruning keeps it.
struct BestCheckpoint {
  std::int64_t step;
  double fid;
  std::string measured;  // how; FIDs are comparable only if this is equal
};
/// Returns the best checkpoint on record, or nothing when best.json is missing or invalid or its
/// checkpoint no longer exists.
std::optional<BestCheckpoint> best_checkpoint(const std::filesystem::path& run);
/// Writes best.json durably. Throws data::WriteError.
void set_best_checkpoint(const std::filesystem::path& run, const BestCheckpoint& best);

/// `version` in the manifests that this program writes and reads.
inline constexpr int kCheckpointVersion = 1;

/// The content of a checkpoint's manifest.
struct Manifest {
  std::int64_t step;
  Config config;
  std::string data_sha256;
  struct File {
    std::string name, sha256;
    std::int64_t bytes;
  };
  std::vector<File> files;
  std::map<std::string, std::string> file_of;  // the file of each parameter
};

/// Reads the manifest of a step's checkpoint. Throws data::InputError naming the file when it is
/// damaged, UsageError when another version of the program wrote it.
Manifest read_manifest(const std::filesystem::path& run, std::int64_t step);
/// Renames a damaged checkpoint to step-N.damaged, which replaces an earlier one, so that it can be
/// inspected. Throws data::WriteError.
void set_aside_checkpoint(const std::filesystem::path& run, std::int64_t step);
/// Compares the files of a checkpoint with the sizes and hashes in its manifest. Throws
/// data::InputError naming the first file that differs and the step. Calls `progress` now and then.
void verify_checkpoint(
    const std::filesystem::path& run, const Manifest& manifest,
    const std::function<void()>& progress = [] {});
/// Fills the parameters that `state` holds, and its optimiser, from a verified checkpoint that was
/// written with any layout EP x DP. Calls `progress` after each tensor.
void load_checkpoint(
    const std::filesystem::path& run, const Manifest& manifest, TrainingState& state,
    const std::function<void()>& progress = [] {});

/// The values of --run, --step and --raw, for the verbs that read a run's weights.
struct RunWeights {
  std::string run;
  std::int64_t step = -1;  // -1: the newest
  bool raw = false;        // the raw weights instead of their running average
};
void add_weights_options(CLI::App& verb, RunWeights& weights);

struct LoadedWeights {
  Config config;
  std::int64_t step;
  model::Parameters parameters;
};
/// Returns the candidates to load, given the parameters that every rank holds: these decide which
/// candidates are selected at which step.
using Need = std::function<model::Holds(const model::Parameters& shared)>;
/// Verifies a checkpoint and reads its weights: all candidates, or those that `need` returns.
/// Throws data::InputError when the run has no such checkpoint or it is damaged. Calls `progress`
/// now and then.
LoadedWeights load_weights(
    const RunWeights& weights, at::ScalarType dtype, at::Device device = at::kCPU,
    const Need& need = {}, const std::function<void()>& progress = [] {});

}  // namespace laterna::launch
