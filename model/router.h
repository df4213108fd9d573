// The router of a layer: the selection network with its lateral connection (eqs 9-12). A router
// reads only t_d, and its lateral state follows from its own logits, so the selections of a whole
// training step are known before the forward pass begins (spec, end of section 1), and those of a
// sampler for all its steps at once.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <string>
#include <vector>

#include "dist/experts/step_plan.h"
#include "model/kernels/cpu/kernels.h"
#include "model/parameters.h"

namespace laterna::model {

using dist::LayerRouting;
using dist::Routing;

class Router {
 public:
  Router(const Parameters& parameters, const ModelConfig& config, std::int64_t layer);

  /// Returns the selection for activated = SiLU(e) [B, D].
  LayerRouting route(const at::Tensor& activated) const;

 private:
  std::int64_t layer_, steps_, selected_;
  kernels::Surrogate surrogate_;
  at::Tensor weight_, bias_;                    // [N, D], [N]
  at::Tensor gamma_, aggregation_, threshold_;  // [], [N, N], []; undefined without lateral
};

/// Returns a mask, uint8 [..., N], that is 1 at the k largest entries of each row of corrected
/// [..., N] (float64); ties go to the lower index.
at::Tensor largest(const at::Tensor& corrected, std::int64_t k);

/// Returns the routing of sample i of `table`, repeated for `batch` samples; a sampler thus takes a
/// step's routing from the table of all its steps.
Routing repeat(const Routing& table, std::int64_t i, std::int64_t batch);

}  // namespace laterna::model
