// Compares operation counts with a direct count of every addition that a spike causes, one at a
// time.
#include "model/probes/spike_activity.h"

#include "model/candidates.h"
#include "model/denoiser.h"
#include "model/initialise.h"
#include "tests/model/tensors.h"

namespace laterna::model {
namespace {

/// Returns the additions of q (k^T v) for spikes [blocks, M, 3 A d], in the cheaper order.
double attention_by_hand(const at::Tensor& qkv, std::int64_t heads) {
  const auto blocks = qkv.size(0), tokens = qkv.size(1), width = qkv.size(2) / 3;
  const auto depth = width / heads;
  const auto s = qkv.accessor<double, 3>();
  double total = 0;
  for (std::int64_t block = 0; block < blocks; ++block) {
    for (std::int64_t d = 0; d < width; ++d) {
      const auto head = d / depth * depth;
      for (std::int64_t m = 0; m < tokens; ++m) {
        if (tokens < depth) {
          for (std::int64_t n = 0; n < tokens; ++n) {
            total += s[block][m][d] * s[block][n][width + d];  // q k^T
            total += s[block][n][2 * width + d];               // a row of v, for each m
          }
        } else {
          for (std::int64_t e = head; e < head + depth; ++e) {
            total += s[block][m][width + d] * s[block][m][2 * width + e];  // k^T v
          }
          total += s[block][m][d] * double(depth);  // a row of k^T v
        }
      }
    }
  }
  return total;
}

TEST(SpikeActivity, CountsEveryAddition) {
  for (const std::int64_t image_size : {2, 8}) {  // 1 token, then 16: both orders of the attention
    ModelConfig config;
    config.image_size = image_size, config.width = 12, config.depth = 3, config.heads = 3;
    config.hidden_ratio = 2, config.diffusion_steps = 10, config.selection = "tail";
    const Parameters parameters(parameter_specs(config), at::kDouble, false);
    initialise(parameters, config, 3);
    for (const auto& spec : parameters.specs()) {
      if (spec.name.find("norm") != std::string::npos && spec.name.ends_with("bias")) {
        parameters[spec.name].fill_(spec.name.find("norm_") != std::string::npos ? 2.0 : 0.9);
      }
    }
    const Denoiser denoiser(config, parameters, {true, false});
    at::manual_seed(1);
    const at::Tensor x = at::randn({4, 1, image_size, image_size}, at::kDouble);
    const at::Tensor t = at::tensor({0, 3, 6, 9}, at::kLong);
    SpikeActivity activity(config);
    const auto counting = activity.probe();
    std::vector<double> by_hand(3);
    std::size_t seen = 0;
    const Routing routing = denoiser.route(t);
    ASSERT_EQ(routing.size(), 1U);
    denoiser.forward(
        x, t, routing, [&](auto layer, auto site, const auto& spikes, auto assignments) {
          counting(layer, site, spikes, assignments);
          ++seen;
          double& total = by_hand[layer];
          const double fired = spikes.sum().template item<double>();
          EXPECT_GT(fired, 0) << layer << site;
          EXPECT_EQ(assignments != nullptr,
                    layer == 2 && (site == spike_site::kZ || site == spike_site::kHidden));
          if (site == spike_site::kInput) total += fired * 36;
          if (site == spike_site::kQkv) total += attention_by_hand(spikes, 3);
          if (site == spike_site::kAttention || site == spike_site::kHidden) total += fired * 12;
          if (site != spike_site::kZ) return;
          const at::Tensor readers = assignments ? routing[0].mask.sum(2).flatten()
                                                 : at::ones({spikes.size(0)}, at::kLong);  // [T*B]
          total += (spikes.sum({1, 2}) * readers).sum().template item<double>() * 24;
        });
    EXPECT_EQ(seen, 15U);
    for (std::size_t layer = 0; layer < 3; ++layer) {
      EXPECT_EQ(activity.layers()[layer].accumulations, by_hand[layer]) << image_size;
      EXPECT_EQ(activity.layers()[layer].rates.size(), 7U);
    }
    // T = 2 steps of 4 samples; of the candidates, only the neurons of the k = 2 selected ones
    // count.
    const double tokens = double(config.tokens());
    EXPECT_EQ(activity.layers()[2].rates.at("q").neurons, 8 * tokens * 12);
    EXPECT_EQ(activity.layers()[2].rates.at("hidden").neurons, 8 * 2 * tokens * 24);
    EXPECT_EQ(activity.layers()[0].rates.at("hidden").neurons, 8 * tokens * 24);
  }
}

TEST(SpikeActivity, AtFullRateEqualsTheDenseNetworkPerStep) {
  ModelConfig config;
  config.image_size = 8, config.width = 12, config.depth = 2, config.heads = 3;
  config.spiking_steps = 1;
  SpikeActivity activity(config);
  const auto probe = activity.probe();
  const at::Tensor mask = at::tensor({1, 0, 1}, at::kByte).view({1, 1, 3});
  const Assignments assignments = Assignments::of(mask, config.tokens());
  for (std::int64_t layer = 0; layer < 2; ++layer) {
    probe(layer, spike_site::kInput, at::ones({1, 16, 12}), nullptr);
    probe(layer, spike_site::kQkv, at::ones({1, 16, 36}), nullptr);
    probe(layer, spike_site::kAttention, at::ones({1, 16, 12}), nullptr);
    probe(layer, spike_site::kZ, at::ones({1, 16, 12}), &assignments);
    probe(layer, spike_site::kHidden, at::ones({2, 16, 48}), &assignments);
  }
  EXPECT_EQ(activity.accumulations() + real_multiply_adds(config), dense_multiply_adds(config));
}

}  // namespace
}  // namespace laterna::model
