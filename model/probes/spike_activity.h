// The spiking activity of a model and its cost: firing rates, synaptic operations and their energy
// by the usual convention (0.9 pJ per accumulation, one per spike and synapse; 4.6 pJ per
// multiply-add; 45 nm, Horowitz 2014). Operations are counted from the spikes themselves, not
// estimated from rates.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "model/model_config.h"
#include "model/probes/spike_probe.h"

namespace laterna::model {

inline constexpr double kAccumulatePicojoules = 0.9, kMultiplyAddPicojoules = 4.6;

/// Returns the multiply-adds on real numbers of one forward pass of one image: patch embedding,
/// time, gates and head.
double real_multiply_adds(const ModelConfig& config);
/// Returns the multiply-adds of one forward pass of one image through the same network with real
/// activations and one spiking step.
double dense_multiply_adds(const ModelConfig& config);

/// Sums rates and operations over the forward passes that its probe has seen.
class SpikeActivity {
 public:
  struct Rate {
    double fired = 0, neurons = 0;  // a candidate's neurons count only at steps that select them
    double value() const { return neurons > 0 ? fired / neurons : 0; }
  };
  struct Layer {
    std::map<std::string, Rate> rates;  // input, q, k, v, attention, z, hidden
    double accumulations = 0;           // additions that the layer's spikes cause
  };

  explicit SpikeActivity(const ModelConfig& config) : config_(config), layers_(config.depth) {}

  /// Returns a probe for Denoiser::forward; it refers to this object.
  SpikeProbe probe();
  const std::vector<Layer>& layers() const { return layers_; }
  double accumulations() const;

 private:
  void see(std::int64_t layer, std::string_view site, const at::Tensor& spikes,
           const Assignments* assignments);
  double attention_accumulations(const at::Tensor& qkv) const;

  ModelConfig config_;
  std::vector<Layer> layers_;
};

}  // namespace laterna::model
