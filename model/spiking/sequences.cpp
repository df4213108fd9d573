#include "model/spiking/sequences.h"

#include <ATen/ATen.h>

namespace laterna::model {

Sequences Sequences::dense(std::int64_t steps, std::int64_t batch, std::int64_t tokens) {
  at::Tensor blocks = at::empty({batch, steps}, at::kInt);
  auto* entry = blocks.data_ptr<std::int32_t>();
  for (std::int64_t b = 0; b < batch; ++b) {
    for (std::int64_t t = 0; t < steps; ++t) *entry++ = static_cast<std::int32_t>(t * batch + b);
  }
  return {blocks, at::Tensor(), tokens};
}

}  // namespace laterna::model
