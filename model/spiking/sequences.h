// Which rows the neurons of a layer read at each spiking step. Activations are stored as token
// blocks, each with the M token rows of one sample at one step. A sequence lists one sample's token
// block for each of the T steps; where it lists none, the neurons receive no current and their
// membranes only leak.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>

namespace laterna::model {

struct Sequences {
  at::Tensor blocks;            // int32 [sequences, T] on the CPU; -1: no current
  at::Tensor parameter_groups;  // int32 [sequences] on the CPU: index of the norm parameters;
                                // undefined: 0
  std::int64_t tokens;          // M

  /// Returns the sequences of activations [T, B, M, ...] in which every sample is active at every
  /// step.
  static Sequences dense(std::int64_t steps, std::int64_t batch, std::int64_t tokens);
};

}  // namespace laterna::model
