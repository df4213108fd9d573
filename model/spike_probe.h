// A look at the spikes of a forward pass while they are there: for counting what they cost, and for
// comparing them with another program's. Nothing is kept unless somebody looks.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <functional>
#include <string_view>

namespace laterna::model {

struct Assignments;

/// The places of a block at which neurons fire, in the order in which they are seen.
namespace spike_site {
inline constexpr std::string_view kInput = "input";          // [T*B, M, D] read by qkv
inline constexpr std::string_view kQkv = "qkv";              // [T*B, M, 3D] q, k, v
inline constexpr std::string_view kAttention = "attention";  // [T*B, M, D] read by project
inline constexpr std::string_view kZ = "z";                  // [T*B, M, D] read by up
inline constexpr std::string_view kHidden = "hidden";        // [V, M, hidden] read by down
}  // namespace spike_site

/// Called once a layer and site with spikes (0 and 1) as blocks of M token rows, block t * B + b.
/// `assignments` at z and hidden: who reads the blocks of z, and which assignment each block of
/// hidden is; null where the layer does not select (hidden then has the blocks of z).
using SpikeProbe = std::function<void(std::int64_t layer, std::string_view site,
                                      const at::Tensor& spikes, const Assignments* assignments)>;

}  // namespace laterna::model
