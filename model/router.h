// The selection network with its lateral connection (eqs 9-12). The router reads only t_d, and its
// lateral state follows from its own logits: so a whole step's choices are known before the forward
// pass begins (spec, end of section 1), and a sampler's for all its steps at once.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <string>
#include <vector>

#include "model/kernels/kernels.h"
#include "model/parameters.h"

namespace laterna::model {

/// What one selecting layer chose for a batch.
struct LayerRouting {
  std::int64_t layer;
  at::Tensor probability;  // [T, B, N], P before the mask; carries gradients
  at::Tensor mask;         // uint8 [T, B, N] on the CPU: 1 where selected, k a row
};

/// The selecting layers in order.
using Routing = std::vector<LayerRouting>;

class Router {
 public:
  Router(const Parameters& parameters, const ModelConfig& config, std::int64_t layer);

  /// activated: SiLU(e) [B, D].
  LayerRouting route(const at::Tensor& activated) const;

 private:
  std::int64_t layer_, steps_, selected_;
  kernels::Surrogate surrogate_;
  at::Tensor weight_, bias_;                    // [N, D], [N]
  at::Tensor gamma_, aggregation_, threshold_;  // [], [N, N], []; undefined without lateral
};

/// 1 on the k largest entries of each row of corrected [..., N] (float64), ties to the lower index.
at::Tensor largest(const at::Tensor& corrected, std::int64_t k);

/// The routing of sample i alone, repeated for `batch` samples: a sampler's step out of its table.
Routing repeat(const Routing& table, std::int64_t i, std::int64_t batch);

}  // namespace laterna::model
