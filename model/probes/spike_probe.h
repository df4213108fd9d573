// A callback that sees the spikes of a forward pass, to count operations or to compare the spikes
// with those of another program. Without a probe nothing extra is computed or kept.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <functional>
#include <string_view>

namespace laterna::model {

struct Assignments;

/// The sites of a transformer block at which neurons fire, in the order in which the probe sees
/// them; with the shape of the spikes and the linear layer that reads them.
namespace spike_site {
inline constexpr std::string_view kInput = "input";          // [T*B, M, D] read by qkv
inline constexpr std::string_view kQkv = "qkv";              // [T*B, M, 3D] q, k and v
inline constexpr std::string_view kAttention = "attention";  // [T*B, M, D] read by project
inline constexpr std::string_view kZ = "z";                  // [T*B, M, D] read by up
inline constexpr std::string_view kHidden = "hidden";        // [V, M, hidden] read by down
}  // namespace spike_site

/// Called once per layer and site with the spikes (0 and 1) as token blocks of M rows, token block
/// t * B + b. `assignments`, at z and hidden: which assignments read each token block of z, and
/// which assignment each token block of hidden is. It is null where the layer does not select, and
/// hidden then has the token blocks of z; and where candidates are distributed over ranks, where
/// the probe sees hidden once for local and once for remote assignments.
using SpikeProbe = std::function<void(std::int64_t layer, std::string_view site,
                                      const at::Tensor& spikes, const Assignments* assignments)>;

}  // namespace laterna::model
