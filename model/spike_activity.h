// What the spikes of a model cost: firing rates, synaptic operations and their energy by the
// field's convention (an accumulation a spike and synapse, 0.9 pJ; a multiply-add 4.6 pJ; 45 nm,
// Horowitz 2014). Operations are counted from the spikes themselves, not estimated from rates.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "model/model_config.h"
#include "model/spike_probe.h"

namespace laterna::model {

inline constexpr double kAccumulatePicojoules = 0.9, kMultiplyAddPicojoules = 4.6;

/// Multiply-adds on real numbers of one call for one image: patch embedding, time, gates and head.
double real_multiply_adds(const ModelConfig& config);
/// Multiply-adds of one call for one image of the same network with real activations and one step.
double dense_multiply_adds(const ModelConfig& config);

/// Sums of what the probe saw.
class SpikeActivity {
 public:
  struct Rate {
    double fired = 0, neurons = 0;  // a candidate's neurons count at the steps that select them
    double value() const { return neurons > 0 ? fired / neurons : 0; }
  };
  struct Layer {
    std::map<std::string, Rate> rates;  // input, q, k, v, attention, z, hidden
    double accumulations = 0;           // additions that the layer's spikes cause
  };

  explicit SpikeActivity(const ModelConfig& config) : config_(config), layers_(config.depth) {}

  /// For Denoiser::forward; refers to this object.
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
