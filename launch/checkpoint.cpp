#include "launch/checkpoint.h"

#include <ATen/ATen.h>
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <fstream>
#include <map>
#include <nlohmann/json.hpp>

#include "data/durable_file.h"
#include "data/error.h"
#include "data/hdf5_file.h"
#include "data/sha256.h"
#include "launch/tensor_file.h"

namespace laterna::launch {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;

constexpr const char* kShard = "rank-00000.h5";  // one writer holds everything

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

json describe(const Config& config, const std::string& data_sha256, const TrainingState& state,
              const fs::path& shard) {
  json where = json::object();
  for (const auto& spec : state.parameters.specs()) {
    where[spec.name] = {{"file", kShard}, {"shape", spec.shape}};
  }
  return {{"format", "laterna-checkpoint"},
          {"version", 1},
          {"step", state.step},
          {"data_sha256", data_sha256},
          {"config", to_toml(config)},
          {"files",
           {{{"name", kShard},
             {"bytes", fs::file_size(shard)},
             {"sha256", data::sha256_of_file(shard)}}}},
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
                             const std::string& data_sha256, const TrainingState& state) {
  const fs::path folder = folder_of(run, state.step);
  if (fs::exists(folder / "manifest.json")) return 0;  // this step is safe already
  std::error_code failed;
  fs::create_directories(folder, failed);
  if (failed) {
    throw data::WriteError(fmt::format("{}: cannot make the folder: {}; choose another --run",
                                       folder.string(), failed.message()));
  }
  const fs::path shard = folder / kShard;
  auto file = data::Hdf5File::create(shard);
  file.set_attribute("/", "format", "laterna-checkpoint");
  file.set_attribute("/", "step", state.step);
  for (const auto& [group, flat] : buffers(state)) {
    for (const auto& spec : state.parameters.specs()) {
      write_tensor(file, group + "/" + spec.name, model::Parameters::view_of(flat, spec));
    }
  }
  write_tensor(file, "adam/updates", at::tensor(state.optimizer.updates(), at::kLong));
  file.close();
  data::sync_file(shard);
  data::sync_folder(folder);
  data::sync_folder(run / "checkpoints");
  data::sync_folder(run);
  const json manifest = describe(config, data_sha256, state, shard);
  data::write_file_durably(folder / "manifest.json", manifest.dump(1));
  return manifest["files"][0]["bytes"].get<std::int64_t>();
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
                      {}};
    for (const auto& entry : text.at("files")) {
      manifest.files.push_back({entry.at("name"), entry.at("sha256"), entry.at("bytes")});
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
  const auto file = data::Hdf5File::open(folder_of(run, manifest.step) / kShard);
  const at::NoGradGuard no_grad;
  for (const auto& [group, flat] : buffers(state)) {
    for (const auto& spec : state.parameters.specs()) {
      model::Parameters::view_of(flat, spec)
          .copy_(read_tensor(file, group + "/" + spec.name, flat.scalar_type(), spec.shape));
    }
  }
  state.optimizer.set_updates(read_tensor(file, "adam/updates", at::kLong).item<std::int64_t>());
  state.step = manifest.step;
}

void add_weights_options(CLI::App& verb, RunWeights& weights) {
  verb.add_option("--run", weights.run, "The run folder")->required();
  verb.add_option("--step", weights.step, "The checkpoint of that step (the newest unless told)");
  verb.add_flag("--raw", weights.raw, "The weights themselves, not their running average");
}

LoadedWeights load_weights(const RunWeights& weights, at::ScalarType dtype) {
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
  model::Parameters parameters(model::parameter_specs(manifest.config.model), dtype, false);
  const auto file = data::Hdf5File::open(folder_of(weights.run, step) / kShard);
  const std::string group = weights.raw ? "model/" : "average/";
  for (const auto& spec : parameters.specs()) {
    parameters[spec.name].copy_(read_tensor(file, group + spec.name, dtype, spec.shape));
  }
  return {manifest.config, step, std::move(parameters)};
}

}  // namespace laterna::launch
