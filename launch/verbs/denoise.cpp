// `laterna denoise`: runs a model once on the inputs in a file, and writes everything that another
// program needs for a comparison: epsilon, the selections, and on request all gradients and spikes.
// Chunks of samples (sampling.chunk) go to the ranks in turn, so that epsilon does not depend on
// the number of ranks.
#include <ATen/ATen.h>
#include <fmt/format.h>

#include <algorithm>
#include <filesystem>
#include <memory>
#include <utility>
#include <vector>

#include "data/error.h"
#include "data/files/durable_file.h"
#include "launch/checkpoint/tensor_file.h"
#include "launch/collective.h"
#include "launch/verbs/verbs.h"
#include "model/candidates.h"
#include "model/denoiser.h"

namespace laterna::launch {
namespace {

struct Request {
  std::string model, input, output, precision = "float32";
  bool gradients = false, spikes = false;
};

struct Inputs {
  at::Tensor x, t, noise;  // x [B, C, H, W]; t int64 [B]; noise like x, or undefined
};

Inputs read_inputs(const Request& request, const model::ModelConfig& config, at::ScalarType dtype) {
  const auto file = data::Hdf5File::open(request.input);
  Inputs in;
  in.x = read_tensor(file, "x", dtype, {-1, config.channels, config.image_size, config.image_size});
  in.t = read_tensor(file, "t", at::kLong, {in.x.size(0)});
  if (in.x.size(0) == 0) throw data::InputError(request.input + ": x holds no images");
  if (in.t.lt(0).any().item<bool>() || in.t.ge(config.diffusion_steps).any().item<bool>()) {
    throw data::InputError(
        fmt::format("{}: t must lie in 0..{}", request.input, config.diffusion_steps - 1));
  }
  if (request.gradients) in.noise = read_tensor(file, "noise", dtype, in.x.sizes().vec());
  return in;
}

/// Returns the rows of the assignments, [V, M, hidden], by token block and candidate: [T*B, N, M,
/// hidden], zero where a candidate was not selected. Without assignments the layer has one
/// candidate.
at::Tensor by_candidate(const at::Tensor& blocks, const model::Assignments* assignments) {
  if (!assignments) return blocks.unsqueeze(1);
  const at::Tensor selected = assignments->table.ge(0);  // [T*B, N]
  const at::Tensor out = at::zeros(
      {selected.size(0), selected.size(1), blocks.size(1), blocks.size(2)}, blocks.options());
  const at::Tensor assignment = assignments->table.masked_select(selected).to(at::kLong);
  out.index_put_({selected}, blocks.index_select(0, assignment));
  return out;
}

void write_selections(data::Hdf5File& file, const model::Routing& routing) {
  std::vector<std::int64_t> layers;
  std::vector<at::Tensor> probabilities, masks;
  for (const auto& layer : routing) {
    layers.push_back(layer.layer);
    probabilities.push_back(layer.probability.detach());
    masks.push_back(layer.mask);
  }
  write_tensor(file, "selection/layer", at::tensor(layers, at::kLong));
  if (layers.empty()) return;
  write_tensor(file, "selection/probability", at::stack(probabilities));
  write_tensor(file, "selection/mask", at::stack(masks));
}

using Named = std::vector<std::pair<std::string, at::Tensor>>;

/// Returns a probe that appends spikes/<layer>/<site> to `spikes_of` as uint8 [T, B, M, width], and
/// hidden as [T, B, N, M, hidden] with zeros where a candidate was not selected.
model::SpikeProbe spike_keeper(Named& spikes_of, std::int64_t steps) {
  return [&spikes_of, steps](std::int64_t layer, std::string_view site, const at::Tensor& spikes,
                             const model::Assignments* assignments) {
    at::Tensor bytes = spikes.detach().to(at::kByte).cpu();  // [T*B, M, width]
    if (site == model::spike_site::kHidden) bytes = by_candidate(bytes, assignments);
    auto shape = bytes.sizes().vec();
    shape[0] /= steps;
    shape.insert(shape.begin(), steps);
    spikes_of.emplace_back(fmt::format("spikes/{}/{}", layer, site), bytes.view(shape));
  };
}

struct Outputs {
  at::Tensor epsilon;   // [B, C, H, W]
  at::Tensor gradient;  // flat, or undefined
  Named spikes;
};

/// Runs this rank's chunks. In the result, epsilon is zero for the samples of other ranks and the
/// gradient lacks their part: the sums over all ranks are complete.
Outputs run_chunks(const Request& request, const LoadedModel& loaded, const Inputs& in,
                   const model::Denoiser& denoiser, const dist::World& world) {
  at::AutoGradMode grad_mode(request.gradients);
  const at::Device device = world.device().torch();
  const std::int64_t batch = in.x.size(0);
  const std::int64_t chunk = request.spikes ? batch : loaded.config.sampling.chunk;
  Outputs out{at::zeros(in.x.sizes(), in.x.options()), {}, {}};
  for (std::int64_t c = world.rank(); c * chunk < batch; c += world.size()) {
    const std::int64_t begin = c * chunk, end = std::min(begin + chunk, batch);
    const at::Tensor t = in.t.slice(0, begin, end);
    const at::Tensor epsilon = denoiser.forward(
        in.x.slice(0, begin, end).to(device), t, denoiser.route(t),
        request.spikes ? spike_keeper(out.spikes, loaded.config.model.spiking_steps)
                       : model::SpikeProbe());
    out.epsilon.slice(0, begin, end).copy_(epsilon.detach());
    if (!request.gradients) continue;
    const at::Tensor off = in.noise.slice(0, begin, end).to(device) - epsilon;
    (off.square().sum() / double(in.x.numel())).backward();
  }
  if (request.gradients) out.gradient = loaded.parameters.gradient().cpu();
  return out;
}

void write_outputs(const Request& request, const LoadedModel& loaded, const model::Routing& routing,
                   const Outputs& out) {
  const std::filesystem::path aside = request.output + ".part";
  auto file = data::Hdf5File::create(aside);
  write_tensor(file, "epsilon", out.epsilon);
  write_selections(file, routing);
  for (const auto& [name, tensor] : out.spikes) write_tensor(file, name, tensor);
  if (request.gradients) {
    for (const auto& spec : loaded.parameters.specs()) {
      write_tensor(file, "gradient/" + spec.name, model::Parameters::view_of(out.gradient, spec));
    }
  }
  file.close();
  data::rename_durably(aside, request.output);
}

int denoise(const Request& request, dist::World& world) {
  if (request.spikes) require_single_process(world, "denoise --spikes");
  world.open_device();
  const bool float64 = request.precision == "float64";
  const at::ScalarType dtype = float64 ? at::kDouble : at::kFloat;
  std::unique_ptr<LoadedModel> loaded;
  Inputs in;
  run_collectively(world, [&] {
    loaded = std::make_unique<LoadedModel>(
        read_model(request.model, dtype, request.gradients, world.device().torch()));
    in = read_inputs(request, loaded->config.model, dtype);
  });
  const model::Denoiser denoiser(loaded->config.model, loaded->parameters,
                                 {float64, request.precision == "bfloat16"});
  const Outputs out = run_chunks(request, *loaded, in, denoiser, world);
  world.control().all_reduce(out.epsilon)->wait();
  if (request.gradients) world.control().all_reduce(out.gradient)->wait();
  run_collectively(world, [&] {
    const at::NoGradGuard no_grad;
    if (world.rank() == 0) write_outputs(request, *loaded, denoiser.route(in.t), out);
  });
  return 0;
}

}  // namespace

void add_denoise(CLI::App& app, Action& action) {
  const auto request = std::make_shared<Request>();
  auto* verb = app.add_subcommand("denoise", "Run a model once on the inputs in a file");
  verb->add_option("--model", request->model,
                   "A file written by laterna export or by another program")
      ->required();
  verb->add_option("--input", request->input, "HDF5: x [B,C,H,W], t [B], noise with --gradients")
      ->required();
  verb->add_option("--output", request->output, "HDF5: epsilon, selection/*, gradient/*, spikes/*")
      ->required();
  verb->add_flag("--gradients", request->gradients,
                 "Also write the gradients of the mean squared error");
  verb->add_flag("--spikes", request->spikes,
                 "Also write every spike, as uint8, to spikes/<layer>/<site>");
  verb->add_option("--precision", request->precision, "float32, bfloat16 or float64")
      ->check(CLI::IsMember({"float32", "bfloat16", "float64"}));
  verb->callback([&action, request] {
    action.run = [request](dist::World& world) { return denoise(*request, world); };
  });
}

}  // namespace laterna::launch
