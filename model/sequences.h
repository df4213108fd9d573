// Which rows the neurons of a layer see at each spiking step. Activations are stored as blocks of M
// token rows; a sequence is one sample's path through the T steps: the block that holds each step,
// or none where the neuron receives no current and its membrane only leaks.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>

namespace laterna::model {

struct Sequences {
  at::Tensor blocks;            // int32 [sequences, T] on the CPU; -1: no current
  at::Tensor parameter_groups;  // int32 [sequences] on the CPU: which norm parameters; undefined:
                                // the first
  std::int64_t tokens;          // M

  /// Activations [T, B, M, ...] in which every sample is active at every step.
  static Sequences dense(std::int64_t steps, std::int64_t batch, std::int64_t tokens);
};

}  // namespace laterna::model
