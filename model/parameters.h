// The parameters of a model that a rank holds, by name (spec section 2), as views of one flat
// buffer. The buffer starts with the parameters that every rank holds; the candidates of the
// selecting layers follow, in an expert-parallel group only those of the rank's shard. Both parts
// are in the order of first use. Gradients lie in a second flat buffer of the same layout, so that
// the reducers' buckets, the gradient norm, the optimiser and checkpoints work on plain contiguous
// memory.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <functional>
#include <map>
#include <string>
#include <vector>

#include "dist/experts/placement.h"
#include "model/model_config.h"

namespace laterna::model {

struct ParameterSpec {
  std::string name;
  std::vector<std::int64_t> shape;
  std::int64_t offset;  // in elements, from the start of the flat buffer; a multiple of 16
  std::int64_t size;    // elements
  std::int64_t number;  // index in the whole model, whatever is held; seeds the start values
  bool candidate;       // of a selecting layer's candidate, and so in a shard of a Placement
};

/// Returns the names, shapes and offsets of all parameters of a model (spec section 2).
std::vector<ParameterSpec> parameter_specs(const ModelConfig& config);
/// Whether a rank holds a candidate of a selecting layer.
using Holds = std::function<bool(std::int64_t layer, std::int64_t candidate)>;
/// Returns the specs of all parameters but the candidates for which `holds` is false.
std::vector<ParameterSpec> parameter_specs(const ModelConfig& config, const Holds& holds);
/// Returns the specs of the parameters that `rank` of an expert-parallel group holds.
std::vector<ParameterSpec> parameter_specs(const ModelConfig& config,
                                           const dist::Placement& placement, std::int64_t rank);

/// Returns the number of elements of all `specs`, without padding.
std::int64_t count_of(const std::vector<ParameterSpec>& specs);

class Parameters {
 public:
  /// Allocates zeros of dtype float32 or float64 on `device`. With `trainable` the views require
  /// gradients, which accumulate in gradient().
  Parameters(std::vector<ParameterSpec> specs, at::ScalarType dtype, bool trainable,
             at::Device device = at::kCPU);

  const std::vector<ParameterSpec>& specs() const { return specs_; }
  /// Returns the parameter called `name`, a view of values(). Throws std::out_of_range naming it.
  const at::Tensor& operator[](const std::string& name) const;
  /// Returns the numbers of the held candidates of `layer`, ascending.
  std::vector<std::int64_t> candidates_of(std::int64_t layer) const;
  /// One view of values() per parameter, in the order of specs().
  const std::vector<at::Tensor>& views() const { return views_; }
  const at::Tensor& values() const { return values_; }      // flat
  const at::Tensor& gradient() const { return gradient_; }  // flat; undefined unless trainable
  /// Returns how many elements of the flat buffers belong to parameters that every rank holds; the
  /// candidates' elements follow these.
  std::int64_t shared_size() const;

  /// Returns the part of a flat buffer of this layout that belongs to `spec`, in the parameter's
  /// shape.
  static at::Tensor view_of(const at::Tensor& flat, const ParameterSpec& spec);

 private:
  std::vector<ParameterSpec> specs_;
  at::Tensor values_, gradient_;
  std::vector<at::Tensor> views_;
  std::map<std::string, std::size_t> index_;
};

}  // namespace laterna::model
