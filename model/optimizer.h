// AdamW (betas 0.9 and 0.999, eps 1e-8, no weight decay) on the flat parameter buffer, in one pass
// with the running average of the weights (EMA) from which samples are generated; and the sum of
// squares for gradient norms.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>

#include "model/parameters.h"

namespace laterna::model {

/// Returns the sum of the squares of a flat buffer (float32 or float64), added in float64 in a
/// fixed order: the same buffer gives the same bits for any number of threads.
double sum_of_squares(const at::Tensor& flat);

class Optimizer {
 public:
  /// `ema` is the largest decay of the average; update n (from 0) uses min(ema, (1+n)/(10+n)).
  Optimizer(const Parameters& parameters, double ema);

  /// Makes one update from parameters.gradient() times `gradient_scale`.
  void step(double learning_rate, double gradient_scale);

  std::int64_t updates() const { return updates_; }
  void set_updates(std::int64_t updates) { updates_ = updates; }
  /// The moments and the averaged weights, flat buffers in the layout of the parameters. The
  /// average equals the weights until the first update. A caller that resumes writes to all three.
  const at::Tensor& first_moment() const { return first_; }
  const at::Tensor& second_moment() const { return second_; }
  const at::Tensor& average() const { return average_; }

 private:
  struct Update {
    double gradient_scale, learning_rate;
    double correction1, correction2;  // 1 - beta^update
    double average_decay;
  };
  void step_fused(const Update& update);
  void step_reference(const Update& update);  // step_fused() in tensor operations, on any device

  const Parameters& parameters_;
  double ema_;
  std::int64_t updates_ = 0;
  at::Tensor first_, second_, average_;
};

}  // namespace laterna::model
