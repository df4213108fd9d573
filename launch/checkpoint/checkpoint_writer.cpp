// The order of a commit: every rank's file is written and synced and the checkpoint's folder
// synced; then the folders above are synced; last, manifest.json is written under another name,
// synced and renamed, and its folder synced.
#include "launch/checkpoint/checkpoint_writer.h"

#include <ATen/ATen.h>
#include <fmt/format.h>

#include <algorithm>
#include <cstring>
#include <nlohmann/json.hpp>
#include <set>
#include <thread>

#include "data/error.h"
#include "data/files/durable_file.h"
#include "data/files/hdf5_file.h"
#include "data/files/sha256.h"
#include "data/host.h"
#include "dist/agreement.h"
#include "launch/checkpoint/tensor_file.h"
#include "launch/collective.h"

namespace laterna::launch {
namespace {

using data::seconds_since;

namespace fs = std::filesystem;
using nlohmann::json;

constexpr std::int64_t kHashLength = 64;
// Bytes between two syncs of a file: a slow disk then shows progress while it is written.
constexpr std::int64_t kSyncedAtOnce = std::int64_t{256} << 20;

struct Written {
  std::vector<Manifest::File> files;  // of ranks 0 .. count-1
  double seconds = 0;                 // of the slowest writer
};

/// Collective. Returns on every rank the files of ranks 0 .. count-1, given each rank's own.
Written share_files(dist::Communicator& control, const Manifest::File& mine, double seconds,
                    std::int64_t count) {
  const at::Tensor facts = at::zeros({16 + kHashLength}, at::kByte);
  auto* bytes = facts.mutable_data_ptr<std::uint8_t>();
  std::memcpy(bytes, &mine.bytes, 8);
  std::memcpy(bytes + 8, &seconds, 8);
  std::copy(mine.sha256.begin(), mine.sha256.end(), bytes + 16);
  const at::Tensor all = dist::gather_facts(control, facts);
  Written written;
  for (std::int64_t rank = 0; rank < count; ++rank) {
    const auto* row = all[rank].const_data_ptr<std::uint8_t>();
    Manifest::File file{checkpoint_file(rank), std::string(row + 16, row + 16 + kHashLength), 0};
    std::memcpy(&file.bytes, row, 8);
    std::memcpy(&seconds, row + 8, 8);
    written.files.push_back(std::move(file));
    written.seconds = std::max(written.seconds, seconds);
  }
  return written;
}

json describe(const Config& config, const std::string& data_sha256, std::int64_t step,
              const std::vector<Manifest::File>& files) {
  const dist::Placement placement = config.placement();
  json where = json::object();
  for (std::int64_t writer = 0; writer < placement.shards(); ++writer) {
    for (const auto& spec : model::parameter_specs(config.model, placement, writer)) {
      if (!is_written_by(writer, spec)) continue;
      where[spec.name] = {{"file", checkpoint_file(writer)}, {"shape", spec.shape}};
    }
  }
  json list = json::array();
  for (const auto& file : files) {
    list.push_back({{"name", file.name}, {"bytes", file.bytes}, {"sha256", file.sha256}});
  }
  return {{"format", "laterna-checkpoint"},
          {"version", kCheckpointVersion},
          {"step", step},
          {"data_sha256", data_sha256},
          {"config", to_toml(config)},
          {"files", list},
          {"parameters", where}};
}

void make_folder(const fs::path& folder) {
  std::error_code failed;
  fs::create_directories(folder, failed);
  if (failed) {
    throw data::WriteError(fmt::format("{}: cannot create the folder: {}; choose another --run",
                                       folder.string(), failed.message()));
  }
}

/// Waits until this host sees every file with its size, and calls `waiting` between two looks.
/// Throws WriteError after `seconds`: another host's ranks write to another folder.
void await_files(const fs::path& folder, const std::vector<Manifest::File>& files, double seconds,
                 const std::function<void()>& waiting) {
  const auto began = std::chrono::steady_clock::now();
  const auto is_there = [&](const Manifest::File& file) {
    std::error_code missing;
    const auto bytes = fs::file_size(folder / file.name, missing);
    return !missing && static_cast<std::int64_t>(bytes) == file.bytes;
  };
  for (const auto& file : files) {
    while (!is_there(file)) {
      if (seconds_since(began) >= seconds) {
        throw data::WriteError(fmt::format(
            "{}: not there with its {} bytes, as seen from rank 0; all hosts need the same run "
            "folder, on a file system that they share",
            (folder / file.name).string(), file.bytes));
      }
      std::this_thread::sleep_for(std::chrono::milliseconds(100));
      data::list_again(folder);
      waiting();
    }
  }
}

/// Removes files that a crashed save with more writers may have left in the folder.
void remove_other_files(const fs::path& folder, const std::vector<Manifest::File>& files) {
  std::set<std::string> ours;
  for (const auto& file : files) ours.insert(file.name);
  std::error_code none;
  for (const auto& entry : fs::directory_iterator(folder, none)) {
    if (!ours.contains(entry.path().filename().string())) fs::remove(entry.path(), none);
  }
}

}  // namespace

CheckpointWriter::CheckpointWriter(fs::path run, const Config& config, std::string data_sha256,
                                   dist::World& world, const monitoring::RunLog* log,
                                   std::function<void(const Saved&)> on_saved)
    : run_(std::move(run)),
      config_(config),
      data_sha256_(std::move(data_sha256)),
      world_(world),
      log_(log),
      on_saved_(std::move(on_saved)) {}

bool CheckpointWriter::is_writer() const {  // the first replica of each shard
  return world_.rank() < config_.placement().shards();
}

void CheckpointWriter::begin(const TrainingState& state) {
  finish();
  const auto began = Clock::now();
  // Only rank 0 looks: another host's file system would cache that the manifest does not exist.
  const bool is_safe = world_.rank() == 0 && is_complete(run_, state.step);
  if (broadcast_from_root(world_, is_safe) != 0) return;
  phase_ = Phase::writing;
  step_ = state.step;
  updates_ = state.optimizer.updates();
  obstacle_ = log_ ? log_->trouble() : "";
  if (is_writer()) {
    const auto scope = world_.heartbeat().enter("copying tensors to save");
    specs_ = state.parameters.specs();
    const std::int64_t first = world_.rank() == 0 ? 0 : state.parameters.shared_size();
    for (const auto& [group, flat] : checkpoint_buffers(state)) {
      at::Tensor& copy = copies_[group];
      if (!copy.defined()) copy = at::empty(flat.sizes(), flat.options().device(at::kCPU));
      copy.slice(0, first).copy_(flat.detach().slice(0, first));
    }
  }
  record_ = {};
  record_.step = step_;
  record_.snapshot_seconds = seconds_since(began);
  if (is_writer()) task_ = std::async(std::launch::async, [this] { return write(); });
}

/// Writes, syncs and hashes this rank's file; runs on a separate thread.
Manifest::File CheckpointWriter::write() {
  const fs::path folder = checkpoint_folder(run_, step_);
  const fs::path path = folder / checkpoint_file(world_.rank());
  if (!obstacle_.empty()) throw data::WriteError(obstacle_);
  const auto began = Clock::now();
  make_folder(folder);
  if (log_) data::sync_file(log_->path());  // on disk before the checkpoint is
  auto file = data::Hdf5File::create(path);
  file.set_attribute("/", "format", "laterna-checkpoint");
  file.set_attribute("/", "step", step_);
  std::int64_t unsynced = 0;
  for (const auto& [group, flat] : copies_) {
    for (const auto& spec : specs_) {
      if (!is_written_by(world_.rank(), spec)) continue;
      const at::Tensor tensor = model::Parameters::view_of(flat, spec);
      write_tensor(file, group + "/" + spec.name, tensor);
      unsynced += static_cast<std::int64_t>(tensor.nbytes());
      if (unsynced > kSyncedAtOnce) {
        data::sync_file(path);
        unsynced = 0;
      }
      ++progress_;
    }
  }
  if (world_.rank() == 0) write_tensor(file, "adam/updates", at::tensor(updates_, at::kLong));
  file.close();
  const auto progress = [this] { ++progress_; };
  Manifest::File done{path.filename().string(), data::sha256_of_file(path, progress),  // cached
                      static_cast<std::int64_t>(fs::file_size(path))};
  data::sync_file(path);
  data::sync_folder(folder);
  data::forget_cached(path);
  if (data::sha256_of_file(path, progress) != done.sha256) {
    throw data::WriteError(
        fmt::format("{}: the disk gives back other bytes than were written to it; use another disk",
                    path.string()));
  }
  record_.write_seconds = seconds_since(began);
  return done;
}

/// Writes the manifest, which completes the checkpoint, and prunes older ones; runs on a separate
/// thread of rank 0.
void CheckpointWriter::commit(const std::vector<Manifest::File>& files) {
  const fs::path folder = checkpoint_folder(run_, step_);
  await_files(folder, files, appears_within(world_), [this] { ++progress_; });
  remove_other_files(folder, files);
  data::sync_folder(run_ / "checkpoints");
  data::sync_folder(run_);
  data::write_file_durably(folder / "manifest.json",
                           describe(config_, data_sha256_, step_, files).dump(1));
  prune_checkpoints(run_, config_.checkpoint.keep);
}

void CheckpointWriter::poll() {
  if (phase_ == Phase::idle) return;
  const bool busy =
      task_.valid() && task_.wait_for(std::chrono::seconds(0)) != std::future_status::ready;
  const at::Tensor ranks_busy = at::full({1}, std::int64_t{busy}, at::kLong);
  world_.control().all_reduce(ranks_busy)->wait();
  if (ranks_busy.item<std::int64_t>() == 0) advance();
}

void CheckpointWriter::finish() {
  const auto scope = world_.heartbeat().enter("waiting for a checkpoint to be written");
  while (phase_ != Phase::idle) {
    std::int64_t seen = progress_;
    while (task_.valid() && task_.wait_for(std::chrono::seconds(1)) != std::future_status::ready) {
      if (progress_ != seen) world_.heartbeat().touch();
      seen = progress_;
    }
    advance();
  }
}

/// Collective. Takes the results of the ranks' tasks and moves on from writing to committing, or
/// from committing to the end; a task that failed ends the save.
void CheckpointWriter::advance() {
  Manifest::File mine{"", std::string(kHashLength, ' '), 0};
  std::optional<dist::Failure> failure;
  try {
    if (task_.valid()) mine = task_.get();
  } catch (const std::exception& error) {
    failure = dist::Failure{status_of(error), message_of(error)};
  }
  if (const auto agreed = dist::agree_on_failure(world_.control(), failure)) {
    return end(world_.size() > 1 ? fmt::format("rank {}: {}", agreed->rank, agreed->message)
                                 : agreed->message);
  }
  if (phase_ == Phase::committing) return end("");
  const Written written =
      share_files(world_.control(), mine, record_.write_seconds, config_.placement().shards());
  for (const auto& file : written.files) record_.bytes += file.bytes;
  record_.write_seconds = written.seconds;
  phase_ = Phase::committing;
  commit_began_ = Clock::now();
  if (world_.rank() != 0) return;
  task_ = std::async(std::launch::async, [this, files = written.files] {
    commit(files);
    return Manifest::File{};
  });
}

void CheckpointWriter::end(const std::string& failure) {
  const bool wrote = phase_ == Phase::committing;
  phase_ = Phase::idle;
  record_.commit_seconds = wrote ? seconds_since(commit_began_) : 0;
  if (!wrote && is_writer()) {  // frees space on a full disk
    std::error_code none;
    fs::remove(checkpoint_folder(run_, step_) / checkpoint_file(world_.rank()), none);
  }
  on_saved_({step_, failure, record_});
}

}  // namespace laterna::launch
