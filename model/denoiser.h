// The whole model, and the file to read first: the noise prediction eps(x_t, t_d) of a spiking
// transformer whose layers select candidates by diffusion step and spiking step (spec section 1;
// eqs 6-13).
#pragma once

#include <ATen/core/Tensor.h>

#include <vector>

#include "model/block.h"
#include "model/expert_parallel.h"
#include "model/model_config.h"
#include "model/parameters.h"
#include "model/probes/spike_probe.h"
#include "model/router.h"

namespace laterna::model {

class Denoiser {
 public:
  /// Refers to `parameters` (laid out by parameter_specs(config)): changing their values changes
  /// the model. With `group` they are those that its rank holds.
  Denoiser(const ModelConfig& config, const Parameters& parameters, const Precision& precision,
           const ExpertGroup* group = nullptr);

  /// Returns SiLU(e) [B, D] for the diffusion steps t (int64 [B], 0-based).
  at::Tensor activated_time(const at::Tensor& t) const;

  /// Returns what every selecting layer selects at diffusion steps t, which is known before the
  /// forward pass.
  Routing route(const at::Tensor& t) const;

  /// Returns the predicted noise in x [B, C, H, W] at steps t (int64 [B]): [B, C, H, W], in the
  /// parameters' dtype. `routing` is route(t), or rows of such a table. With a group of several
  /// ranks every entry has its plan (dist::attach), the call is collective, and B may be 0.
  /// `probe`, unless empty, is called with the spikes.
  at::Tensor forward(const at::Tensor& x, const at::Tensor& t, const Routing& routing,
                     const SpikeProbe& probe = {}) const;

 private:
  at::Tensor encode(const at::Tensor& x) const;
  at::Tensor decode(const at::Tensor& stream) const;

  ModelConfig config_;
  at::Tensor embed_weight_, embed_bias_, position_, time_, norm_weight_, norm_bias_, head_weight_,
      head_bias_;
  std::vector<Block> blocks_;
  std::vector<Router> routers_;
};

}  // namespace laterna::model
