#include "launch/checkpoint.h"

#include <ATen/ATen.h>
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cstring>
#include <fstream>
#include <map>
#include <nlohmann/json.hpp>

#include "data/durable_file.h"
#include "data/error.h"
#include "data/hdf5_file.h"
#include "data/sha256.h"
#include "launch/tensor_file.h"
#include "launch/together.h"

namespace laterna::launch {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;

std::string file_name(std::int64_t rank) { return fmt::format("rank-{:05}.h5", rank); }

fs::path folder_of(const fs::path& run, std::int64_t step) {
  return run / "checkpoints" / fmt::format("step-{:09}", step);
}

/// The step of a checkpoint folder's name, or nothing for any other name.
std::optional<std::int64_t> step_of(const fs::path& folder) {
  const std::string name = folder.filename().string();
  if (!name.starts_with("step-") || name.size() < 6 || name.size() > 23) return {};
  if (name.find_first_not_of("0123456789", 5) != std::string::npos) return {};
  return std::stoll(name.substr(5));
}

/// The buffers of a checkpoint: a group of its file each, parameter by parameter.
std::map<std::string, at::Tensor> buffers(const TrainingState& state) {
  return {{"model", state.parameters.values()},
          {"average", state.optimizer.average()},
          {"adam/first", state.optimizer.first()},
          {"adam/second", state.optimizer.second()}};
}

/// The files of a checkpoint, opened as they are asked for.
class Files {
 public:
  Files(fs::path folder, const Manifest& manifest)
      : folder_(std::move(folder)), manifest_(manifest) {}

  at::Tensor read(const std::string& group, const model::ParameterSpec& spec,
                  at::ScalarType dtype) {
    const auto place = manifest_.file_of.find(spec.name);
    if (place == manifest_.file_of.end()) {
      throw data::InputError(fmt::format("{}: its manifest has no parameter {}",
                                         (folder_ / "manifest.json").string(), spec.name));
    }
    return read_tensor(file(place->second), group + "/" + spec.name, dtype, spec.shape);
  }
  const data::Hdf5File& file(const std::string& name) {
    auto found = files_.find(name);
    if (found == files_.end()) {
      found = files_.emplace(name, data::Hdf5File::open(folder_ / name)).first;
    }
    return found->second;
  }

 private:
  fs::path folder_;
  const Manifest& manifest_;
  std::map<std::string, data::Hdf5File> files_;
};

/// Whether writer `rank` writes it: its candidates, and rank 0 what all hold.
bool writes(std::int64_t rank, const model::ParameterSpec& spec) {
  return rank == 0 || spec.candidate;
}

/// Writes and secures a writer's file: what it holds of the candidates, rank 0 also what all hold.
Manifest::File write_file(const fs::path& folder, std::int64_t rank, const TrainingState& state) {
  const fs::path path = folder / file_name(rank);
  auto file = data::Hdf5File::create(path);
  file.set_attribute("/", "format", "laterna-checkpoint");
  file.set_attribute("/", "step", state.step);
  for (const auto& [group, flat] : buffers(state)) {
    for (const auto& spec : state.parameters.specs()) {
      if (!writes(rank, spec)) continue;
      write_tensor(file, group + "/" + spec.name, model::Parameters::view_of(flat, spec));
    }
  }
  if (rank == 0) {
    write_tensor(file, "adam/updates", at::tensor(state.optimizer.updates(), at::kLong));
  }
  file.close();
  data::sync_file(path);
  data::sync_folder(folder);
  return {file_name(rank), data::sha256_of_file(path),
          static_cast<std::int64_t>(fs::file_size(path))};
}

constexpr std::int64_t kHashLength = 64;

/// Collective: the files that ranks 0 .. count-1 wrote, as every rank learns them.
std::vector<Manifest::File> share_files(dist::Communicator& control, const Manifest::File& mine,
                                        std::int64_t count) {
  const at::Tensor facts = at::zeros({8 + kHashLength}, at::kByte);
  auto* bytes = facts.mutable_data_ptr<std::uint8_t>();
  std::memcpy(bytes, &mine.bytes, 8);
  std::copy(mine.sha256.begin(), mine.sha256.end(), bytes + 8);
  const at::Tensor all = at::empty({control.size(), facts.size(0)}, at::kByte);
  control.all_gather(facts, all)->wait();
  std::vector<Manifest::File> files;
  for (std::int64_t rank = 0; rank < count; ++rank) {
    const auto* row = all[rank].const_data_ptr<std::uint8_t>();
    Manifest::File file{file_name(rank), std::string(row + 8, row + 8 + kHashLength), 0};
    std::memcpy(&file.bytes, row, 8);
    files.push_back(std::move(file));
  }
  return files;
}

json describe(const Config& config, const std::string& data_sha256, std::int64_t step,
              const std::vector<Manifest::File>& files) {
  const dist::Placement placement = config.placement();
  json where = json::object();
  for (std::int64_t writer = 0; writer < placement.sides(); ++writer) {
    for (const auto& spec : model::parameter_specs(config.model, placement, writer)) {
      if (!writes(writer, spec)) continue;
      where[spec.name] = {{"file", file_name(writer)}, {"shape", spec.shape}};
    }
  }
  json list = json::array();
  for (const auto& file : files) {
    list.push_back({{"name", file.name}, {"bytes", file.bytes}, {"sha256", file.sha256}});
  }
  return {{"format", "laterna-checkpoint"},
          {"version", 1},
          {"step", step},
          {"data_sha256", data_sha256},
          {"config", to_toml(config)},
          {"files", list},
          {"parameters", where}};
}

}  // namespace

std::vector<std::int64_t> complete_checkpoints(const fs::path& run) {
  std::vector<std::int64_t> steps;
  std::error_code none;
  for (const auto& entry : fs::directory_iterator(run / "checkpoints", none)) {
    const auto step = step_of(entry.path());
    if (step && fs::exists(entry.path() / "manifest.json")) steps.push_back(*step);
  }
  std::sort(steps.begin(), steps.end());
  return steps;
}

std::int64_t save_checkpoint(const fs::path& run, const Config& config,
                             const std::string& data_sha256, const TrainingState& state,
                             dist::World& world) {
  const fs::path folder = folder_of(run, state.step);
  const bool done = same_on_all_ranks(world, fs::exists(folder / "manifest.json")) != 0;
  if (done) return 0;
  const std::int64_t writers = config.placement().sides();  // ranks 0 .. are first holders
  together(world, [&] {
    if (world.rank() != 0) return;
    std::error_code failed;
    fs::create_directories(folder, failed);
    if (failed) {
      throw data::WriteError(fmt::format("{}: cannot make the folder: {}; choose another --run",
                                         folder.string(), failed.message()));
    }
    // A crash may have left files here of a layout with more writers.
    for (std::int64_t rank = writers; fs::remove(folder / file_name(rank), failed); ++rank) {
    }
  });
  Manifest::File mine{"", std::string(kHashLength, ' '), 0};
  together(world, [&] {
    if (world.rank() < writers) mine = write_file(folder, world.rank(), state);
  });
  const auto files = share_files(world.control(), mine, writers);
  together(world, [&] {
    if (world.rank() != 0) return;
    data::sync_folder(run / "checkpoints");
    data::sync_folder(run);
    data::write_file_durably(folder / "manifest.json",
                             describe(config, data_sha256, state.step, files).dump(1));
  });
  std::int64_t bytes = 0;
  for (const auto& file : files) bytes += file.bytes;
  return bytes;
}

void prune_checkpoints(const fs::path& run, std::int64_t keep) {
  auto steps = complete_checkpoints(run);
  const std::size_t kept = std::min<std::size_t>(steps.size(), static_cast<std::size_t>(keep));
  steps.erase(steps.begin(), steps.end() - static_cast<std::ptrdiff_t>(kept));
  std::error_code none;
  for (const auto& entry : fs::directory_iterator(run / "checkpoints", none)) {
    const auto step = step_of(entry.path());
    if (!step) continue;
    // The newest are what remains in `steps`; the manifest goes first, so that a crash in between
    // leaves debris, not a checkpoint that lacks files.
    if (!fs::exists(entry.path() / "manifest.json") ||
        !std::binary_search(steps.begin(), steps.end(), *step)) {
      if (fs::remove(entry.path() / "manifest.json", none)) data::sync_folder(entry.path());
      fs::remove_all(entry.path(), none);
    }
  }
}

Manifest read_manifest(const fs::path& run, std::int64_t step) {
  const fs::path path = folder_of(run, step) / "manifest.json";
  std::ifstream file(path);
  try {
    const json text = json::parse(file);
    Manifest manifest{text.at("step").get<std::int64_t>(),
                      parse_config(text.at("config").get<std::string>(), path.string(), {}),
                      text.at("data_sha256").get<std::string>(),
                      {},
                      {}};
    for (const auto& entry : text.at("files")) {
      manifest.files.push_back({entry.at("name"), entry.at("sha256"), entry.at("bytes")});
    }
    for (const auto& [name, place] : text.at("parameters").items()) {
      manifest.file_of[name] = place.at("file").get<std::string>();
    }
    return manifest;
  } catch (const std::exception& error) {
    throw data::InputError(fmt::format(
        "{}: is no manifest of a checkpoint ({}); remove its folder to go on from an older one",
        path.string(), error.what()));
  }
}

void verify_checkpoint(const fs::path& run, const Manifest& manifest) {
  const fs::path folder = folder_of(run, manifest.step);
  const auto damaged = [&](const fs::path& file, const std::string& what) {
    return data::InputError(
        fmt::format("{}: {}; the checkpoint is damaged: remove {} to go on from an older one",
                    file.string(), what, folder.string()));
  };
  for (const auto& file : manifest.files) {
    const fs::path path = folder / file.name;
    std::error_code missing;
    const auto bytes = fs::file_size(path, missing);
    if (missing) throw damaged(path, "is missing");
    if (static_cast<std::int64_t>(bytes) != file.bytes) {
      throw damaged(path, fmt::format("has {} bytes, its manifest says {}", bytes, file.bytes));
    }
    if (data::sha256_of_file(path) != file.sha256) {
      throw damaged(path, "does not have the SHA-256 that its manifest names");
    }
  }
}

void load_checkpoint(const fs::path& run, const Manifest& manifest, TrainingState& state) {
  Files files(folder_of(run, manifest.step), manifest);
  const at::NoGradGuard no_grad;
  for (const auto& [group, flat] : buffers(state)) {
    for (const auto& spec : state.parameters.specs()) {
      model::Parameters::view_of(flat, spec).copy_(files.read(group, spec, flat.scalar_type()));
    }
  }
  const at::Tensor updates = read_tensor(files.file(file_name(0)), "adam/updates", at::kLong);
  state.optimizer.set_updates(updates.item<std::int64_t>());
  state.step = manifest.step;
}

void add_weights_options(CLI::App& verb, RunWeights& weights) {
  verb.add_option("--run", weights.run, "The run folder")->required();
  verb.add_option("--step", weights.step, "The checkpoint of that step (the newest unless told)");
  verb.add_flag("--raw", weights.raw, "The weights themselves, not their running average");
}

LoadedWeights load_weights(const RunWeights& weights, at::ScalarType dtype, at::Device device,
                           const Need& need) {
  const auto steps = complete_checkpoints(weights.run);
  if (steps.empty()) {
    throw data::InputError(
        fmt::format("{}: holds no complete checkpoint; train it first", weights.run));
  }
  const std::int64_t step = weights.step < 0 ? steps.back() : weights.step;
  if (!std::binary_search(steps.begin(), steps.end(), step)) {
    throw data::InputError(fmt::format("{}: no complete checkpoint of step {}; there are: {}",
                                       weights.run, step, fmt::join(steps, ", ")));
  }
  const Manifest manifest = read_manifest(weights.run, step);
  verify_checkpoint(weights.run, manifest);
  Files files(folder_of(weights.run, step), manifest);
  const auto read = [&](const model::Holds& holds, at::Device where) {
    model::Parameters parameters(model::parameter_specs(manifest.config.model, holds), dtype, false,
                                 where);
    for (const auto& spec : parameters.specs()) {
      parameters[spec.name].copy_(files.read(weights.raw ? "model" : "average", spec, dtype));
    }
    return parameters;
  };
  const auto all_or_none = [](bool all) { return [all](auto...) { return all; }; };
  return {manifest.config, step,
          read(need ? need(read(all_or_none(false), device)) : all_or_none(true), device)};
}

}  // namespace laterna::launch
