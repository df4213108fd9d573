// The parameters of a model that a rank holds, by name (spec section 2), as views of one flat
// buffer: first what every rank holds, then the candidates of the layers that select, which an
// expert-parallel rank holds only its own of; each part in the order of its first use. Gradients
// lie in a second flat buffer of the same layout, so that the reducers' buckets, the norm, the
// optimiser and a checkpoint each see plain memory.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <functional>
#include <map>
#include <string>
#include <vector>

#include "dist/placement.h"
#include "model/model_config.h"

namespace laterna::model {

struct ParameterSpec {
  std::string name;
  std::vector<std::int64_t> shape;
  std::int64_t offset;  // in elements, from the start of the flat buffer; a multiple of 16
  std::int64_t size;    // elements
  std::int64_t number;  // its place in the whole model, whatever is held: what it is drawn from
  bool candidate;       // of a layer that selects: belongs to a shard of a Placement
};

/// Names, shapes and places of all parameters of a model (spec section 2), or of those that a rank
/// of an expert-parallel group holds.
std::vector<ParameterSpec> parameter_specs(const ModelConfig& config);
/// With those candidates of selecting layers alone that `holds` names.
using Holds = std::function<bool(std::int64_t layer, std::int64_t candidate)>;
std::vector<ParameterSpec> parameter_specs(const ModelConfig& config, const Holds& holds);
std::vector<ParameterSpec> parameter_specs(const ModelConfig& config,
                                           const dist::Placement& placement, std::int64_t rank);

/// Elements of all of them, without padding.
std::int64_t count_of(const std::vector<ParameterSpec>& specs);

class Parameters {
 public:
  /// Zeros of dtype float32 or float64 on `device`. With `trainable`, the views require gradients,
  /// which accumulate in gradient().
  Parameters(std::vector<ParameterSpec> specs, at::ScalarType dtype, bool trainable,
             at::Device device = at::kCPU);

  const std::vector<ParameterSpec>& specs() const { return specs_; }
  /// The parameter of that name, a view of values(). Throws std::out_of_range naming it.
  const at::Tensor& operator[](const std::string& name) const;
  /// The candidates of a layer that are among them, ascending.
  std::vector<std::int64_t> candidates_of(std::int64_t layer) const;
  /// Views in the order of specs().
  const std::vector<at::Tensor>& views() const { return views_; }
  const at::Tensor& values() const { return values_; }      // flat
  const at::Tensor& gradient() const { return gradient_; }  // flat; undefined unless trainable
  /// Elements of the flat buffers that belong to what every rank holds; the candidates' follow.
  std::int64_t shared_size() const;

  /// The part of a flat buffer of this layout that belongs to `spec`, in the parameter's shape.
  static at::Tensor view_of(const at::Tensor& flat, const ParameterSpec& spec);

 private:
  std::vector<ParameterSpec> specs_;
  at::Tensor values_, gradient_;
  std::vector<at::Tensor> views_;
  std::map<std::string, std::size_t> index_;
};

/// Start values. Spec section 1: the head zero; time.weight sinusoids; the router's weights normal
/// with variance 1 / mean_t |SiLU(e_t)|^2, gamma and Lambda as configured. Where it is silent:
/// norms one and zero, but the biases of q, k and v 0.7; positions normal with deviation 2; the
/// embedding uniform such that pixels of unit variance have unit variance in the stream; every
/// other weight uniform (Glorot), biases zero. A pure function of the seed.
void initialise(const Parameters& parameters, const ModelConfig& config, std::uint64_t seed);

}  // namespace laterna::model
