// Reads and writes tensors in HDF5 files, and model files (spec section 3, `export`): group `model`
// holds the parameters by name as float32, root attribute `config` the resolved TOML. Other
// software may write such files, too.
#pragma once

#include <ATen/core/Tensor.h>

#include <filesystem>
#include <string>

#include "data/files/hdf5_file.h"
#include "launch/config.h"
#include "model/parameters.h"

namespace laterna::launch {

/// Writes a tensor of dtype uint8, int32, int64, float32 or float64, from any device.
void write_tensor(data::Hdf5File& file, const std::string& name, const at::Tensor& tensor);

/// Reads an HDF5 data set as `dtype`. With `shape`, throws data::InputError naming both shapes when
/// the stored one differs; a negative extent in `shape` matches any.
at::Tensor read_tensor(const data::Hdf5File& file, const std::string& name, at::ScalarType dtype);
at::Tensor read_tensor(const data::Hdf5File& file, const std::string& name, at::ScalarType dtype,
                       const std::vector<std::int64_t>& shape);

/// A model that read_model() has read.
struct LoadedModel {
  Config config;
  model::Parameters parameters;
};
/// Reads a model file; the parameters are of `dtype` and on `device`. Throws data::InputError when
/// the file is not a model file.
LoadedModel read_model(const std::filesystem::path& path, at::ScalarType dtype, bool trainable,
                       at::Device device = at::kCPU);

/// Writes a model file durably, with the parameters in `flat` (laid out by `specs`); an existing
/// file is replaced atomically.
void write_model(const std::filesystem::path& path, const Config& config,
                 const std::vector<model::ParameterSpec>& specs, const at::Tensor& flat);

}  // namespace laterna::launch
