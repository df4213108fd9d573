#include "launch/checkpoint/checkpoint.h"

#include <ATen/ATen.h>
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cstring>
#include <fstream>
#include <map>
#include <nlohmann/json.hpp>
#include <set>
#include <thread>

#include "data/error.h"
#include "data/files/durable_file.h"
#include "data/files/hdf5_file.h"
#include "data/files/sha256.h"
#include "data/host.h"
#include "launch/checkpoint/tensor_file.h"
#include "launch/collective.h"

namespace laterna::launch {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;

/// Returns the step in a checkpoint folder's name, or nothing for any other name.
std::optional<std::int64_t> step_of(const fs::path& folder) {
  const std::string name = folder.filename().string();
  if (!name.starts_with("step-") || name.size() < 6 || name.size() > 23) return {};
  if (name.find_first_not_of("0123456789", 5) != std::string::npos) return {};
  return std::stoll(name.substr(5));
}

/// The files of a checkpoint, opened on first use.
class Files {
 public:
  Files(fs::path folder, const Manifest& manifest)
      : folder_(std::move(folder)), manifest_(manifest) {}

  at::Tensor read(const std::string& group, const model::ParameterSpec& spec,
                  at::ScalarType dtype) {
    const auto place = manifest_.file_of.find(spec.name);
    if (place == manifest_.file_of.end()) {
      throw data::InputError(fmt::format("{}: names no file for parameter {}",
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

fs::path best_file(const fs::path& run) { return run / "checkpoints" / "best.json"; }

}  // namespace

std::string checkpoint_file(std::int64_t rank) { return fmt::format("rank-{:05}.h5", rank); }

fs::path checkpoint_folder(const fs::path& run, std::int64_t step) {
  return run / "checkpoints" / fmt::format("step-{:09}", step);
}

bool is_complete(const fs::path& run, std::int64_t step) {
  std::error_code none;
  return fs::exists(checkpoint_folder(run, step) / "manifest.json", none);
}

std::map<std::string, at::Tensor> checkpoint_buffers(const TrainingState& state) {
  return {{"model", state.parameters.values()},
          {"average", state.optimizer.average()},
          {"adam/first", state.optimizer.first_moment()},
          {"adam/second", state.optimizer.second_moment()}};
}

bool is_written_by(std::int64_t rank, const model::ParameterSpec& spec) {
  return rank == 0 || spec.candidate;
}

std::optional<BestCheckpoint> best_checkpoint(const fs::path& run) {
  std::ifstream file(best_file(run));
  try {
    const json text = json::parse(file);
    BestCheckpoint best{text.at("step"), text.at("fid"), text.at("measured")};
    if (is_complete(run, best.step)) return best;
  } catch (const json::exception&) {  // missing, or not in this format
  }
  return {};
}

void set_best_checkpoint(const fs::path& run, const BestCheckpoint& best) {
  data::write_file_durably(
      best_file(run),
      json{{"step", best.step}, {"fid", best.fid}, {"measured", best.measured}}.dump(1));
}

void set_aside_checkpoint(const fs::path& run, std::int64_t step) {
  const fs::path folder = checkpoint_folder(run, step);
  const fs::path aside = folder.string() + ".damaged";
  std::error_code none;
  fs::remove_all(aside, none);  // set aside earlier
  data::rename_durably(folder, aside);
}

std::vector<std::int64_t> complete_checkpoints(const fs::path& run) {
  std::vector<std::int64_t> steps;
  std::error_code none;
  for (const auto& entry : fs::directory_iterator(run / "checkpoints", none)) {
    const auto step = step_of(entry.path());
    if (step && is_complete(run, *step)) steps.push_back(*step);
  }
  std::sort(steps.begin(), steps.end());
  return steps;
}

void wait_for_checkpoint(const fs::path& run, std::int64_t step, double seconds,
                         const std::function<void()>& waiting) {
  const auto began = std::chrono::steady_clock::now();
  for (;; std::this_thread::sleep_for(std::chrono::milliseconds(100))) {
    const auto seen = complete_checkpoints(run);  // lists the folder: absent names are cached
    if (std::binary_search(seen.begin(), seen.end(), step)) return;
    if (data::seconds_since(began) >= seconds) break;
    waiting();
  }
  throw data::InputError(fmt::format(
      "{}: this rank does not see the checkpoint of step {} that rank 0 sees; give a --run folder "
      "on a file system that all hosts share",
      run.string(), step));
}

void prune_checkpoints(const fs::path& run, std::int64_t keep) {
  auto steps = complete_checkpoints(run);
  const std::size_t kept = std::min<std::size_t>(steps.size(), static_cast<std::size_t>(keep));
  const auto best = best_checkpoint(run);
  steps.erase(steps.begin(), steps.end() - static_cast<std::ptrdiff_t>(kept));
  std::error_code none;
  for (const auto& entry : fs::directory_iterator(run / "checkpoints", none)) {
    const auto step = step_of(entry.path());
    if (!step) continue;
    const bool newest = std::binary_search(steps.begin(), steps.end(), *step);
    if (is_complete(run, *step) && (newest || (best && best->step == *step))) continue;
    // Delete the manifest first: a crash in between leaves an incomplete checkpoint, not one that
    // claims to be complete but lacks files.
    try {
      if (fs::remove(entry.path() / "manifest.json", none)) data::sync_folder(entry.path());
      fs::remove_all(entry.path(), none);
    } catch (const data::WriteError&) {
    }
  }
}

namespace {

struct OtherVersion {};

/// Throws unless the manifest is of this step and lists, with a hash, every file that it names.
void check(const Manifest& manifest, std::int64_t step) {
  if (manifest.step != step) {
    throw std::runtime_error(fmt::format("it belongs to step {}", manifest.step));
  }
  std::set<std::string> listed;
  for (const auto& file : manifest.files) {
    if (file.name != fs::path(file.name).filename().string() || file.name.empty()) {
      throw std::runtime_error(fmt::format("\"{}\" is not a plain file name", file.name));
    }
    listed.insert(file.name);
  }
  for (const auto& [parameter, file] : manifest.file_of) {
    if (!listed.contains(file)) {
      throw std::runtime_error(
          fmt::format("parameter {} is in \"{}\", which `files` does not list", parameter, file));
    }
  }
  if (!listed.contains(checkpoint_file(0))) {
    throw std::runtime_error(fmt::format("`files` does not list {}", checkpoint_file(0)));
  }
}

}  // namespace

Manifest read_manifest(const fs::path& run, std::int64_t step) {
  const fs::path path = checkpoint_folder(run, step) / "manifest.json";
  std::ifstream file(path);
  try {
    const json text = json::parse(file);
    if (text.at("format") != "laterna-checkpoint") throw std::runtime_error("not a checkpoint");
    if (text.at("version") != kCheckpointVersion) throw OtherVersion();
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
    check(manifest, step);
    return manifest;
  } catch (const OtherVersion&) {  // intact, and not to be set aside
    throw UsageError(
        fmt::format("{}: was written by another version of laterna; use that version, or move the "
                    "checkpoint of step {} away",
                    path.string(), step));
  } catch (const std::exception& error) {
    throw data::InputError(
        fmt::format("{}: is not a valid manifest ({}); the checkpoint of step {} is damaged",
                    path.string(), error.what(), step));
  }
}

void verify_checkpoint(const fs::path& run, const Manifest& manifest,
                       const std::function<void()>& progress) {
  const fs::path folder = checkpoint_folder(run, manifest.step);
  const auto damaged = [&](const fs::path& file, const std::string& what) {
    return data::InputError(fmt::format("{}: {}; the checkpoint of step {} is damaged",
                                        file.string(), what, manifest.step));
  };
  for (const auto& file : manifest.files) {
    const fs::path path = folder / file.name;
    std::error_code missing;
    const auto bytes = fs::file_size(path, missing);
    if (missing) throw damaged(path, "is missing");
    if (static_cast<std::int64_t>(bytes) != file.bytes) {
      throw damaged(path, fmt::format("has {} bytes, but the manifest says {}", bytes, file.bytes));
    }
    if (data::sha256_of_file(path, progress) != file.sha256) {
      throw damaged(path, "does not match the SHA-256 in the manifest");
    }
  }
}

void load_checkpoint(const fs::path& run, const Manifest& manifest, TrainingState& state,
                     const std::function<void()>& progress) {
  Files files(checkpoint_folder(run, manifest.step), manifest);
  const at::NoGradGuard no_grad;
  for (const auto& [group, flat] : checkpoint_buffers(state)) {
    for (const auto& spec : state.parameters.specs()) {
      model::Parameters::view_of(flat, spec).copy_(files.read(group, spec, flat.scalar_type()));
      progress();
    }
  }
  const at::Tensor updates = read_tensor(files.file(checkpoint_file(0)), "adam/updates", at::kLong);
  state.optimizer.set_updates(updates.item<std::int64_t>());
  state.step = manifest.step;
}

void add_weights_options(CLI::App& verb, RunWeights& weights) {
  verb.add_option("--run", weights.run, "The run folder")->required();
  verb.add_option("--step", weights.step, "The step of the checkpoint (default: the newest)");
  verb.add_flag("--raw", weights.raw, "Use the raw weights instead of their running average");
}

LoadedWeights load_weights(const RunWeights& weights, at::ScalarType dtype, at::Device device,
                           const Need& need, const std::function<void()>& progress) {
  const auto steps = complete_checkpoints(weights.run);
  if (steps.empty()) {
    throw data::InputError(
        fmt::format("{}: has no complete checkpoint; train this run first", weights.run));
  }
  const std::int64_t step = weights.step < 0 ? steps.back() : weights.step;
  if (!std::binary_search(steps.begin(), steps.end(), step)) {
    throw data::InputError(
        fmt::format("{}: has no complete checkpoint of step {}; available steps: {}", weights.run,
                    step, fmt::join(steps, ", ")));
  }
  const Manifest manifest = read_manifest(weights.run, step);
  verify_checkpoint(weights.run, manifest, progress);
  Files files(checkpoint_folder(weights.run, step), manifest);
  const auto read = [&](const model::Holds& holds, at::Device where) {
    model::Parameters parameters(model::parameter_specs(manifest.config.model, holds), dtype, false,
                                 where);
    for (const auto& spec : parameters.specs()) {
      parameters[spec.name].copy_(files.read(weights.raw ? "model" : "average", spec, dtype));
      progress();
    }
    return parameters;
  };
  const auto all_or_none = [](bool all) { return [all](auto...) { return all; }; };
  return {manifest.config, step,
          read(need ? need(read(all_or_none(false), device)) : all_or_none(true), device)};
}

}  // namespace laterna::launch
