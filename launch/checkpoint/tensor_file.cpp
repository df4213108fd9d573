#include "launch/checkpoint/tensor_file.h"

#include <ATen/ATen.h>
#include <fmt/format.h>
#include <fmt/ranges.h>

#include "data/error.h"
#include "data/files/durable_file.h"

namespace laterna::launch {
namespace {

data::Type type_of(at::ScalarType dtype) {
  switch (dtype) {
    case at::kByte:
      return data::Type::uint8;
    case at::kInt:
      return data::Type::int32;
    case at::kLong:
      return data::Type::int64;
    case at::kFloat:
      return data::Type::float32;
    case at::kDouble:
      return data::Type::float64;
    default:
      TORCH_CHECK(false, "no HDF5 type for tensors of dtype ", dtype);
  }
}

bool fits(const data::Shape& shape, const std::vector<std::int64_t>& wanted) {
  if (shape.size() != wanted.size()) return false;
  for (std::size_t i = 0; i < shape.size(); ++i) {
    if (wanted[i] >= 0 && wanted[i] != shape[i]) return false;
  }
  return true;
}

}  // namespace

void write_tensor(data::Hdf5File& file, const std::string& name, const at::Tensor& tensor) {
  const at::Tensor plain = tensor.detach().cpu().contiguous();
  file.write(name, type_of(plain.scalar_type()), plain.sizes().vec(), plain.const_data_ptr());
}

at::Tensor read_tensor(const data::Hdf5File& file, const std::string& name, at::ScalarType dtype) {
  at::Tensor out = at::empty(file.info(name).shape, dtype);
  file.read(name, type_of(dtype), out.mutable_data_ptr());
  return out;
}

at::Tensor read_tensor(const data::Hdf5File& file, const std::string& name, at::ScalarType dtype,
                       const std::vector<std::int64_t>& shape) {
  const auto found = file.info(name).shape;
  if (!fits(found, shape)) {
    throw data::InputError(
        fmt::format("{}: {} has shape [{}], but [{}] is expected (-1: any extent)",
                    file.path().string(), name, fmt::join(found, ", "), fmt::join(shape, ", ")));
  }
  return read_tensor(file, name, dtype);
}

LoadedModel read_model(const std::filesystem::path& path, at::ScalarType dtype, bool trainable,
                       at::Device device) {
  const auto file = data::Hdf5File::open(path);
  if (!file.has_attribute("/", "config")) {
    throw data::InputError(path.string() +
                           ": has no attribute `config`; give a file that laterna export wrote");
  }
  Config config;
  try {
    config = parse_config(file.string_attribute("/", "config"),
                          path.string() + ", attribute config", {});
  } catch (const UsageError& error) {
    throw data::InputError(error.what());
  }
  model::Parameters parameters(model::parameter_specs(config.model), dtype, trainable, device);
  const at::NoGradGuard no_grad;
  for (const auto& spec : parameters.specs()) {
    parameters[spec.name].copy_(read_tensor(file, "model/" + spec.name, dtype, spec.shape));
  }
  return {std::move(config), std::move(parameters)};
}

void write_model(const std::filesystem::path& path, const Config& config,
                 const std::vector<model::ParameterSpec>& specs, const at::Tensor& flat) {
  const std::filesystem::path aside = path.string() + ".part";
  auto file = data::Hdf5File::create(aside);
  file.set_attribute("/", "format", "laterna-model");
  file.set_attribute("/", "config", to_toml(config));
  for (const auto& spec : specs) {
    write_tensor(file, "model/" + spec.name, model::Parameters::view_of(flat, spec).to(at::kFloat));
  }
  file.close();
  data::rename_durably(aside, path);
}

}  // namespace laterna::launch
