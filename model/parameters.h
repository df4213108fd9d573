// All parameters of a model, by name (spec section 2), as views of one flat buffer in the order of
// their first use. Gradients lie in a second flat buffer of the same layout, so that the reducer's
// buckets, the norm, the optimiser and a checkpoint each see plain memory.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "model/model_config.h"

namespace laterna::model {

struct ParameterSpec {
  std::string name;
  std::vector<std::int64_t> shape;
  std::int64_t offset;  // in elements, from the start of the flat buffer; a multiple of 16
  std::int64_t size;    // elements
};

/// Names, shapes and places of all parameters of a model (spec section 2).
std::vector<ParameterSpec> parameter_specs(const ModelConfig& config);

class Parameters {
 public:
  /// Zeros of dtype float32 or float64 on `device`. With `trainable`, the views require gradients,
  /// which accumulate in gradient().
  Parameters(std::vector<ParameterSpec> specs, at::ScalarType dtype, bool trainable,
             at::Device device = at::kCPU);

  const std::vector<ParameterSpec>& specs() const { return specs_; }
  /// The parameter of that name, a view of values(). Throws std::out_of_range naming it.
  const at::Tensor& operator[](const std::string& name) const;
  /// Views in the order of specs().
  const std::vector<at::Tensor>& views() const { return views_; }
  const at::Tensor& values() const { return values_; }      // flat
  const at::Tensor& gradient() const { return gradient_; }  // flat; undefined unless trainable
  std::int64_t count() const;                               // elements, without padding

  /// The part of a flat buffer of this layout that belongs to `spec`, in the parameter's shape.
  static at::Tensor view_of(const at::Tensor& flat, const ParameterSpec& spec);

 private:
  std::vector<ParameterSpec> specs_;
  at::Tensor values_, gradient_;
  std::vector<at::Tensor> views_;
  std::map<std::string, std::size_t> index_;
};

/// Start values (spec section 1): the head zero; time.weight sinusoids; the router's weights normal
/// with variance 1 / mean_t |SiLU(e_t)|^2, gamma and Lambda as configured; norms one and zero;
/// positions normal with deviation 0.02; every other weight uniform (Glorot), biases zero. A pure
/// function of the seed.
void initialise(const Parameters& parameters, const ModelConfig& config, std::uint64_t seed);

}  // namespace laterna::model
