#include "monitoring/quality/naming.h"

#include <ATen/ATen.h>

#include <cmath>
#include <numeric>

namespace laterna::monitoring {

void Naming::add(const at::Tensor& probabilities) {
  assigned.resize(static_cast<std::size_t>(probabilities.size(1)));
  named.resize(assigned.size());
  const auto [best, index] = probabilities.max(1);
  const auto* probability = best.const_data_ptr<float>();
  const auto* number = index.const_data_ptr<std::int64_t>();
  for (std::int64_t i = 0; i < best.size(0); ++i) {
    ++assigned[number[i]];
    named[number[i]] += probability[i] > kNamedProbability;
  }
}

std::int64_t Naming::images() const {
  return std::accumulate(assigned.begin(), assigned.end(), std::int64_t{0});
}

double Naming::named_share() const {
  return double(std::accumulate(named.begin(), named.end(), std::int64_t{0})) / double(images());
}

double Naming::effective_classes() const {
  double entropy = 0;
  const auto all = double(images());
  for (const auto count : assigned) {
    const double share = double(count) / all;
    if (count > 0) entropy -= share * std::log(share);
  }
  return std::exp(entropy);
}

}  // namespace laterna::monitoring
