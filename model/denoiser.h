// The whole model, and the file to read first: eps(x_t, t_d), a spiking transformer that chooses
// its substructures by diffusion and spiking step (spec section 1; eqs 6-13).
#pragma once

#include <ATen/core/Tensor.h>

#include <vector>

#include "dist/step_plan.h"
#include "model/block.h"
#include "model/expert_parallel.h"
#include "model/model_config.h"
#include "model/parameters.h"
#include "model/router.h"
#include "model/spike_probe.h"

namespace laterna::model {

class Denoiser {
 public:
  /// Reads `parameters` (laid out by parameter_specs(config)) through views; whoever changes their
  /// values changes the model. With `group` they are those that its rank holds.
  Denoiser(const ModelConfig& config, const Parameters& parameters, const Precision& precision,
           const ExpertGroup* group = nullptr);

  /// SiLU(e) of the diffusion steps t (int64 [B], 0-based): [B, D].
  at::Tensor activated_time(const at::Tensor& t) const;

  /// What every selecting layer chooses at diffusion steps t: known before the forward pass.
  Routing route(const at::Tensor& t) const;

  /// The noise that x [B, C, H, W] holds at steps t (int64 [B]): [B, C, H, W], of the parameters'
  /// dtype. `routing` is route(t), or rows of such a table. `probe`, where given, sees the spikes.
  at::Tensor forward(const at::Tensor& x, const at::Tensor& t, const Routing& routing,
                     const SpikeProbe& probe = {}) const;
  /// The same as one rank of the group, collectively: `plan` is the micro-batch's, made of the
  /// group's routings; it outlives the backward pass. B may be 0.
  at::Tensor forward(const at::Tensor& x, const at::Tensor& t, const Routing& routing,
                     const dist::MicroBatchPlan& plan, const SpikeProbe& probe = {}) const;

 private:
  at::Tensor run(const at::Tensor& x, const at::Tensor& t, const Routing& routing,
                 const SpikeProbe& probe, const dist::MicroBatchPlan* plan) const;
  at::Tensor encode(const at::Tensor& x) const;
  at::Tensor decode(const at::Tensor& stream) const;

  ModelConfig config_;
  at::Tensor embed_weight_, embed_bias_, position_, time_, norm_weight_, norm_bias_, head_weight_,
      head_bias_;
  std::vector<Block> blocks_;
  std::vector<Router> routers_;
};

}  // namespace laterna::model
