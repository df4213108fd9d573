// The sizes and options that define a model (spec section 1). Names and defaults are those of the
// configuration table [model]; the defaults are the paper's MNIST model.
#pragma once

#include <cstdint>
#include <string>

namespace laterna::model {

struct ModelConfig {
  std::int64_t image_size = 28, channels = 1, patch = 2;
  std::int64_t width = 384, depth = 12, heads = 6;  // D, R, A
  std::int64_t spiking_steps = 2;                   // T
  std::int64_t hidden_ratio = 4;
  std::int64_t candidates = 3, selected = 2;  // N, k
  std::string selection = "full";             // full | head | middle | tail | none
  bool lateral = true;
  double gamma_start = 0;
  std::string aggregation_start = "one_minus_identity";
  std::string surrogate = "sigmoid";  // sigmoid | arctangent
  std::int64_t diffusion_steps = 1000;

  std::int64_t tokens() const { return (image_size / patch) * (image_size / patch); }  // M
  std::int64_t hidden() const { return hidden_ratio * width; }
  std::int64_t patch_values() const { return channels * patch * patch; }
  /// Whether layer r selects among its candidates. A layer that does not select has one candidate,
  /// with weight 1.
  bool selects(std::int64_t layer) const {
    const bool head = 3 * layer < depth, tail = 3 * layer >= 2 * depth;
    return selection == "full" || (selection == "head" && head) || (selection == "tail" && tail) ||
           (selection == "middle" && !head && !tail);
  }
  std::int64_t candidates_of(std::int64_t layer) const { return selects(layer) ? candidates : 1; }
};

/// Number formats: parameters, membranes and currents are float32 or float64. With
/// `bfloat16_products` the operands of the spike-driven products are first rounded to bfloat16;
/// sums stay in float32, which on a CPU reproduces a bfloat16 device's numbers but not its speed.
struct Precision {
  bool float64 = false;
  bool bfloat16_products = false;
};

}  // namespace laterna::model
