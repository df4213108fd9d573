#include "model/probes/spike_activity.h"

#include <ATen/ATen.h>

#include "model/candidates.h"

namespace laterna::model {
namespace {

// B batch, T spiking steps, M tokens, D width, A heads, d = D / A, V assignments.

double count(const at::Tensor& spikes) { return spikes.sum(at::kDouble).item<double>(); }

double pixels_of(const ModelConfig& c) { return double(c.tokens() * c.patch_values()); }

}  // namespace

double real_multiply_adds(const ModelConfig& c) {
  const double width = double(c.width);
  double total = 2 * pixels_of(c) * width;  // the head reads the average over the steps
  for (std::int64_t layer = 0; layer < c.depth; ++layer) {
    total += width * width + (c.selects(layer) ? double(c.candidates) * width : 0);
  }
  return total;
}

double dense_multiply_adds(const ModelConfig& c) {
  const double tokens = double(c.tokens()), width = double(c.width);
  const double attention = 4 * tokens * width * width +
                           2 * tokens * width * double(std::min(c.tokens(), c.width / c.heads));
  const double candidate = 2 * tokens * width * double(c.hidden());
  double total = real_multiply_adds(c);
  for (std::int64_t layer = 0; layer < c.depth; ++layer) {
    total += attention + candidate * double(c.selects(layer) ? c.selected : 1);
  }
  return total;
}

SpikeProbe SpikeActivity::probe() {
  return [this](std::int64_t layer, std::string_view site, const at::Tensor& spikes,
                const Assignments* assignments) { see(layer, site, spikes, assignments); };
}

double SpikeActivity::accumulations() const {
  double total = 0;
  for (const auto& layer : layers_) total += layer.accumulations;
  return total;
}

void SpikeActivity::see(std::int64_t layer, std::string_view site, const at::Tensor& spikes,
                        const Assignments* assignments) {
  Layer& seen = layers_[static_cast<std::size_t>(layer)];
  const auto add = [&](std::string_view name, const at::Tensor& part) {
    Rate& rate = seen.rates[std::string(name)];
    const double fired = count(part);
    rate.fired += fired;
    rate.neurons += double(part.numel());
    return fired;
  };
  if (site == spike_site::kQkv) {
    const auto parts = spikes.chunk(3, -1);
    const char* const names[] = {"q", "k", "v"};
    for (std::size_t i = 0; i < 3; ++i) add(names[i], parts[i]);
    seen.accumulations += attention_accumulations(spikes);
    return;
  }
  const double fired = add(site, spikes);
  if (site == spike_site::kInput) {
    seen.accumulations += fired * 3 * double(config_.width);
  } else if (site == spike_site::kZ) {  // every assignment reads its token block
    const double read =
        assignments ? count(spikes.flatten(1).sum(1).cpu() * assignments->table.ge(0).sum(1))
                    : fired;
    seen.accumulations += read * double(config_.hidden());
  } else {
    seen.accumulations += fired * double(config_.width);
  }
}

/// Returns the additions of q (k^T v) in the cheaper order, which spike_attention_reference uses;
/// the CPU kernel always computes k^T v first.
double SpikeActivity::attention_accumulations(const at::Tensor& qkv) const {
  const std::int64_t depth = config_.width / config_.heads;
  const at::Tensor parts = qkv.view({qkv.size(0), config_.tokens(), 3, config_.heads, depth});
  const at::Tensor q = parts.select(2, 0), k = parts.select(2, 1), v = parts.select(2, 2);
  if (config_.tokens() < depth) {  // (q k^T) v: pairs of tokens that share an active entry
    return count(q.sum(1) * k.sum(1)) + count(v) * double(config_.tokens());
  }
  return count(k.sum(3) * v.sum(3)) + count(q) * double(depth);
}

}  // namespace laterna::model
