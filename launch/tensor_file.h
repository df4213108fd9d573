// Tensors in HDF5 files, and the file form in which a model travels: group `model` with the
// parameters by name as float32, root attribute `config` with the resolved TOML (spec section 3,
// `export`). Other software may write such files too.
#pragma once

#include <ATen/core/Tensor.h>

#include <filesystem>
#include <string>

#include "data/hdf5_file.h"
#include "launch/config.h"
#include "model/parameters.h"

namespace laterna::launch {

/// Writes a CPU tensor of dtype uint8, int32, int64, float32 or float64.
void write_tensor(data::Hdf5File& file, const std::string& name, const at::Tensor& tensor);

/// Reads a data set as `dtype`. With `shape`, any other shape is an InputError naming both; a
/// negative extent there matches any.
at::Tensor read_tensor(const data::Hdf5File& file, const std::string& name, at::ScalarType dtype);
at::Tensor read_tensor(const data::Hdf5File& file, const std::string& name, at::ScalarType dtype,
                       const std::vector<std::int64_t>& shape);

/// A model read from such a file: its parameters in `dtype` on `device`.
struct LoadedModel {
  Config config;
  model::Parameters parameters;
};
LoadedModel read_model(const std::filesystem::path& path, at::ScalarType dtype, bool trainable,
                       at::Device device = at::kCPU);

/// Writes the parameters of `flat` (laid out by `specs`) durably; any old file is replaced whole.
void write_model(const std::filesystem::path& path, const Config& config,
                 const std::vector<model::ParameterSpec>& specs, const at::Tensor& flat);

}  // namespace laterna::launch
