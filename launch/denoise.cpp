// `laterna denoise`: one call of the model on a file's inputs, with everything that another program
// needs to compare itself with: epsilon, the selections, and on request all gradients.
#include <ATen/ATen.h>
#include <fmt/format.h>

#include <filesystem>

#include "data/durable_file.h"
#include "data/error.h"
#include "launch/tensor_file.h"
#include "launch/together.h"
#include "launch/verbs.h"
#include "model/denoiser.h"

namespace laterna::launch {
namespace {

struct Request {
  std::string model, input, output, precision = "float32";
  bool gradients = false;
};

struct Inputs {
  at::Tensor x, t, noise;  // [B, C, H, W], int64 [B], like x or undefined
};

Inputs read_inputs(const Request& request, const model::ModelConfig& config, at::ScalarType dtype) {
  const auto file = data::Hdf5File::open(request.input);
  Inputs in;
  in.x = read_tensor(file, "x", dtype, {-1, config.channels, config.image_size, config.image_size});
  in.t = read_tensor(file, "t", at::kLong, {in.x.size(0)});
  if (in.x.size(0) == 0) throw data::InputError(request.input + ": x holds no image");
  if (in.t.lt(0).any().item<bool>() || in.t.ge(config.diffusion_steps).any().item<bool>()) {
    throw data::InputError(
        fmt::format("{}: t must lie in 0..{}", request.input, config.diffusion_steps - 1));
  }
  if (request.gradients) in.noise = read_tensor(file, "noise", dtype, in.x.sizes().vec());
  return in;
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

int denoise(const Request& request) {
  const bool float64 = request.precision == "float64";
  const at::ScalarType dtype = float64 ? at::kDouble : at::kFloat;
  const auto loaded = read_model(request.model, dtype, request.gradients);
  const auto& config = loaded.config.model;
  const Inputs in = read_inputs(request, config, dtype);
  const model::Denoiser denoiser(config, loaded.parameters,
                                 {float64, request.precision == "bfloat16"});

  at::AutoGradMode grad_mode(request.gradients);
  const model::Routing routing = denoiser.route(in.t);
  const at::Tensor epsilon = denoiser.forward(in.x, in.t, routing);
  if (request.gradients) (in.noise - epsilon).square().mean().backward();

  const std::filesystem::path aside = request.output + ".part";
  auto file = data::Hdf5File::create(aside);
  write_tensor(file, "epsilon", epsilon);
  write_selections(file, routing);
  if (request.gradients) {
    for (const auto& spec : loaded.parameters.specs()) {
      write_tensor(file, "gradient/" + spec.name, loaded.parameters[spec.name].grad());
    }
  }
  file.close();
  data::rename_durably(aside, request.output);
  return 0;
}

}  // namespace

void add_denoise(CLI::App& app, Action& action) {
  const auto request = std::make_shared<Request>();
  auto* verb = app.add_subcommand("denoise", "One call of a model on the inputs of a file");
  verb->add_option("--model", request->model, "What laterna export wrote, or another program")
      ->required();
  verb->add_option("--input", request->input, "HDF5: x [B,C,H,W], t [B], noise with --gradients")
      ->required();
  verb->add_option("--output", request->output, "HDF5: epsilon, selection/*, gradient/*")
      ->required();
  verb->add_flag("--gradients", request->gradients, "Also those of the mean squared error");
  verb->add_option("--precision", request->precision, "float32, bfloat16 or float64")
      ->check(CLI::IsMember({"float32", "bfloat16", "float64"}));
  verb->callback([&action, request] {
    action = [request](dist::World& world) {
      alone(world, "denoise");
      return denoise(*request);
    };
  });
}

}  // namespace laterna::launch
