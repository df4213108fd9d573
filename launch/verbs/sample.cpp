// `laterna sample`: draws images from a checkpoint and writes them as a PNG grid and an HDF5 shard;
// on request also a strip that shows the denoising. The ranks take whole chunks of images in turn,
// so that an image depends only on the weights, the seed, its number and the chunk size.
#include <ATen/ATen.h>
#include <fmt/format.h>

#include <memory>

#include "data/files/durable_file.h"
#include "data/files/sha256.h"
#include "data/pictures/image_file.h"
#include "launch/checkpoint/checkpoint.h"
#include "launch/checkpoint/tensor_file.h"
#include "launch/collective.h"
#include "launch/evaluation/sampling.h"
#include "launch/training/run_folder.h"
#include "launch/verbs/verbs.h"
#include "monitoring/telemetry/progress.h"

namespace laterna::launch {
namespace {

constexpr std::int64_t kStripRows = 8, kStripColumns = 12;

struct Request {
  RunWeights weights;
  std::string output;
  Settings settings;
  bool strip = false;
};

struct Samples {
  at::Tensor images;  // uint8 [count, C, H, W], on rank 0
  at::Tensor strip;   // uint8 [rows * columns, C, H, W], on rank 0; undefined without --strip
};

/// Collects the first images of chunk 0 at evenly spaced denoising steps, for strip.png.
class Strip {
 public:
  Strip(bool wanted, std::int64_t steps, std::int64_t chunk)
      : wanted_(wanted), steps_(steps), rows_(std::min(kStripRows, chunk)) {}

  void see(std::int64_t step, const at::Tensor& x) {
    if (!wanted_) return;
    const auto due = static_cast<std::int64_t>(columns_.size()) * steps_ / (kStripColumns - 1);
    if (step >= due) columns_.push_back(model::to_pixels(x.narrow(0, 0, rows_)).cpu());
  }
  at::Tensor finish(const at::Tensor& last) {
    if (!wanted_) return {};
    columns_.push_back(model::to_pixels(last.narrow(0, 0, rows_)).cpu());
    return at::stack(columns_, 1).flatten(0, 1);  // [rows * columns, C, H, W]
  }
  std::int64_t columns() const { return static_cast<std::int64_t>(columns_.size()); }

 private:
  bool wanted_;
  std::int64_t steps_, rows_;
  std::vector<at::Tensor> columns_;
};

Samples draw(dist::World& world, const Config& config, const model::Parameters& parameters,
             Strip& strip) {
  const auto chunk = config.sampling.chunk, count = config.sampling.count;
  const auto& m = config.model;
  std::unique_ptr<monitoring::Progress> progress;
  Samples samples;
  std::vector<at::Tensor> parts;
  SamplingCalls calls;
  calls.on_step = [&](const SamplingStep& at, const at::Tensor& x) {
    if (at.chunk == 0) strip.see(at.step, x);
    if (world.rank() != 0) return;
    if (!progress) progress = std::make_unique<monitoring::Progress>("denoising step", at.steps);
    progress->update(at.step + 1, fmt::format("{} images", count));
  };
  calls.on_round = [&](std::int64_t c, const at::Tensor& images) {
    if (c == 0) samples.strip = strip.finish(images);
    const at::Tensor pixels =
        c < 0 ? at::zeros({chunk, m.channels, m.image_size, m.image_size}, at::kByte)
              : model::to_pixels(images).cpu();
    auto extents = pixels.sizes().vec();
    extents.insert(extents.begin(), world.size());
    at::Tensor all = at::empty(extents, at::kByte);
    world.control().all_gather(pixels, all)->wait();
    parts.push_back(all.flatten(0, 1));
  };
  sample_on_ranks(world, config, parameters, count, calls);
  if (progress) progress->finish();
  samples.images = at::cat(parts).narrow(0, 0, count);
  return samples;
}

void write_shard(const std::filesystem::path& path, const at::Tensor& images,
                 const std::string& config, const LoadedWeights& weights) {
  const std::filesystem::path aside = path.string() + ".part";
  auto file = data::Hdf5File::create(aside);
  write_tensor(file, "images", images);
  file.set_attribute("/", "format", "laterna-images");
  file.set_attribute("/", "version", std::int64_t{1});
  file.set_attribute("/", "name", "samples");
  file.set_attribute("/", "split", "generated");
  file.set_attribute("/", "sha256", data::sha256(images.const_data_ptr(), images.numel()));
  file.set_attribute("/", "step", weights.step);
  file.set_attribute("/", "config", config);
  file.close();
  data::rename_durably(aside, path);
}

void write_grid(const std::filesystem::path& path, const at::Tensor& images, std::int64_t columns) {
  data::write_png_grid(path, images.const_data_ptr<std::uint8_t>(), images.size(0),
                       static_cast<int>(images.size(1)), static_cast<int>(images.size(2)),
                       static_cast<int>(images.size(3)), static_cast<int>(columns));
}

int sample(const Request& request, dist::World& world) {
  require_one_world(world);
  world.open_device();
  std::unique_ptr<LoadedWeights> weights;
  Config config;
  std::filesystem::path folder;
  run_collectively(world, [&] {
    // config.toml, not the checkpoint's copy: [sampling] may have changed when the run was resumed.
    config = read_run_config(request.weights.run, request.settings);
    weights = std::make_unique<LoadedWeights>(load_sampled_weights(request.weights, config, world));
    folder = request.output.empty()
                 ? std::filesystem::path(request.weights.run) / "samples" /
                       fmt::format("step-{:09}{}", weights->step, request.weights.raw ? "-raw" : "")
                 : std::filesystem::path(request.output);
    std::filesystem::create_directories(folder);
  });
  Strip strip(request.strip, config.sampling.steps, config.sampling.chunk);
  const Samples samples = draw(world, config, weights->parameters, strip);
  run_collectively(world, [&] {
    if (world.rank() != 0) return;
    const std::int64_t columns = std::min<std::int64_t>(
        16, static_cast<std::int64_t>(std::ceil(std::sqrt(double(samples.images.size(0))))));
    write_grid(folder / "grid.png", samples.images, columns);
    write_shard(folder / "images.h5", samples.images, to_toml(config), *weights);
    if (request.strip) write_grid(folder / "strip.png", samples.strip, strip.columns());
    fmt::print("{} images of step {}: {}\n", samples.images.size(0), weights->step,
               (folder / "grid.png").string());
  });
  return 0;
}

}  // namespace

void add_sample(CLI::App& app, Action& action) {
  const auto request = std::make_shared<Request>();
  auto* verb =
      app.add_subcommand("sample", "Draw images from a checkpoint, on any number of ranks");
  add_weights_options(*verb, request->weights);
  verb->add_option("--output", request->output,
                   "The folder to write to (default: RUN/samples/step-N)");
  verb->add_option("--set", request->settings, "Override a key: sampling.key=value; repeatable")
      ->take_all()
      ->allow_extra_args(false);
  verb->add_flag("--strip", request->strip,
                 "Also write strip.png: the first images while they emerge from noise");
  verb->callback([&action, request] {
    action.run = [request](dist::World& world) { return sample(*request, world); };
  });
}

}  // namespace laterna::launch
