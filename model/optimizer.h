// AdamW (betas 0.9, 0.999, eps 1e-8, no decay) on the flat parameter buffer, with the running
// average of the weights (EMA) that samples are made from, in one pass; and the square sum
// that gradient norms are made of.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>

#include "model/parameters.h"

namespace laterna::model {

/// Sum of the squares of a flat buffer (float32 or float64), in float64 in a fixed order: the same
/// bits for the same buffer whatever the threads.
double sum_of_squares(const at::Tensor& flat);

class Optimizer {
 public:
  /// `ema`: the largest decay of the average; at update n (from 0) it is min(ema, (1+n)/(10+n)).
  Optimizer(const Parameters& parameters, double ema);

  /// One update from parameters.gradient() times `gradient_scale`.
  void step(double learning_rate, double gradient_scale);

  std::int64_t updates() const { return updates_; }
  void set_updates(std::int64_t updates) { updates_ = updates; }
  /// Flat buffers of the parameters' layout: the moments and the averaged weights. The average is
  /// the weights themselves until the first update; average() may be written to when resuming.
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
  void step_reference(const Update& update);  // the same in tensor operations, on any device

  const Parameters& parameters_;
  double ema_;
  std::int64_t updates_ = 0;
  at::Tensor first_, second_, average_;
};

}  // namespace laterna::model
