// Tests the routers: ties, that a sample's selection does not depend on its batch, and the gradient
// of gamma. The lateral connection is compared with tensor operations in
// tests/launch/kernel_table_test.cpp.
#include "model/router.h"

#include "model/denoiser.h"
#include "model/diffusion.h"
#include "model/optimizer.h"
#include "tests/model/tensors.h"
#include "tests/model/tiny.h"

namespace laterna::model {
namespace {

TEST(Router, SelectionsChangeBetweenStepsOnlyByTheLateralConnection) {
  at::manual_seed(11);
  ModelConfig config = tiny();
  for (const auto dtype : {at::kDouble, at::kFloat}) {
    for (const bool lateral : {true, false}) {
      config.lateral = lateral;
      const Parameters p(parameter_specs(config), dtype, false);
      for (const auto& view : p.views()) view.normal_(0, 0.3);
      if (lateral) {  // some lateral neurons need more than one step to fire, and then decide
        p["blocks.1.router.lateral.gamma"].fill_(2);
        p["blocks.1.router.lateral.threshold"].fill_(0.3);
      }
      const LayerRouting routing = Router(p, config, 1).route(at::randn({30, config.width}, dtype));
      EXPECT_EQ(routing.mask.ne(routing.mask[0]).any().item<bool>(), lateral);
      EXPECT_EQ(routing.probability.scalar_type(), dtype);
      EXPECT_EQ(routing.layer, 1);
    }
  }
}

TEST(Largest, TiesGoToTheLowerIndex) {
  const auto mask = [](std::vector<double> row, std::int64_t k) {
    const at::Tensor out = largest(at::tensor(row, at::kDouble).view({1, 1, -1}), k);
    return std::vector<int>(out.data_ptr<std::uint8_t>(),
                            out.data_ptr<std::uint8_t>() + row.size());
  };
  EXPECT_EQ(mask({1, 1, 1}, 2), (std::vector{1, 1, 0}));
  EXPECT_EQ(mask({0, 1, 1, 1}, 2), (std::vector{0, 1, 1, 0}));
  EXPECT_EQ(mask({1, 2, 1}, 2), (std::vector{1, 1, 0}));
  EXPECT_EQ(mask({0.0, -0.0, 0.0}, 1), (std::vector{1, 0, 0}));
  EXPECT_EQ(mask({-0.0, 0.0}, 1), (std::vector{1, 0}));
  EXPECT_EQ(mask({3, 1, 2}, 3), (std::vector{1, 1, 1}));
  EXPECT_EQ(mask({-5, -4, -6}, 1), (std::vector{0, 1, 0}));
}

/// Returns the parameters of a tiny model whose lateral connections have an effect.
Parameters lively(const ModelConfig& config, at::ScalarType dtype) {
  Parameters parameters = initialised(config, 5, dtype);
  const at::NoGradGuard no_grad;
  for (int r = 0; r < config.depth; ++r) {
    parameters[fmt::format("blocks.{}.router.lateral.gamma", r)].fill_(1.5);
  }
  return parameters;
}

void expect_equal(const Routing& actual, const Routing& expected) {
  ASSERT_EQ(actual.size(), expected.size());
  for (std::size_t i = 0; i < actual.size(); ++i) {
    EXPECT_EQ(actual[i].layer, expected[i].layer);
    EXPECT_TRUE(at::equal(actual[i].mask, expected[i].mask));
    EXPECT_TRUE(at::equal(actual[i].probability, expected[i].probability));
  }
}

TEST(Routing, DoesNotDependOnTheBatch) {
  for (const auto dtype : {at::kFloat, at::kDouble}) {
    const auto config = tiny();
    const auto parameters = lively(config, dtype);
    const Denoiser denoiser(config, parameters, {dtype == at::kDouble, false});
    const at::Tensor t = at::arange(49, -1, -1, at::kLong);
    const Routing together = denoiser.route(t);
    ASSERT_EQ(together.size(), 3U);
    for (std::int64_t i = 0; i < 50; ++i) {
      const Routing alone = denoiser.route(t.narrow(0, i, 1));
      for (std::size_t layer = 0; layer < 3; ++layer) {
        EXPECT_TRUE(
            at::equal(alone[layer].probability, together[layer].probability.narrow(1, i, 1)));
        EXPECT_TRUE(at::equal(alone[layer].mask, together[layer].mask.narrow(1, i, 1)));
      }
    }
  }
}

TEST(Routing, RepeatGivesOneSamplesRoutingToAll) {
  const auto config = tiny();
  const auto parameters = lively(config, at::kDouble);
  const Denoiser denoiser(config, parameters, {true, false});
  const Routing table = denoiser.route(at::tensor({3, 44, 20}, at::kLong));
  expect_equal(repeat(table, 1, 5), denoiser.route(at::full({5}, 44, at::kLong)));
  expect_equal(repeat(table, 2, 1), denoiser.route(at::full({1}, 20, at::kLong)));
  for (const auto& layer : repeat(table, 0, 4)) EXPECT_TRUE(layer.mask.is_contiguous());
}

TEST(Routing, ExistsOnlyForSelectingLayers) {
  ModelConfig config = tiny();
  config.selection = "tail";
  const auto parameters = initialised(config, 0);
  const Denoiser denoiser(config, parameters, {true, false});
  const Routing routing = denoiser.route(at::tensor({7}, at::kLong));
  ASSERT_EQ(routing.size(), 1U);
  EXPECT_EQ(routing[0].layer, 2);
  config.selection = "none";
  const auto without = initialised(config, 0);
  EXPECT_TRUE(Denoiser(config, without, {true, false}).route(at::tensor({7}, at::kLong)).empty());
}

// --- gamma at the start ---

/// Computes the gradients of the loss of a batch of 128 random images at one training step.
void accumulate(const ModelConfig& config, const Parameters& parameters, std::uint64_t step) {
  const Denoiser denoiser(config, parameters, {});
  const Diffusion diffusion({});
  const std::vector<std::int64_t> shape{config.channels, config.image_size, config.image_size};
  const auto draws = diffusion.draw(0, step, 0, 128, shape, at::kFloat);
  at::manual_seed(step);
  const at::Tensor x = diffusion.corrupt(at::rand(draws.noise.sizes()) * 2 - 1, draws);
  parameters.gradient().zero_();
  (draws.noise - denoiser.forward(x, draws.t, denoiser.route(draws.t))).square().mean().backward();
}

// The routers of the MNIST model (width 384, 12 layers, N 3, k 2, T 2, batch 128); images of a
// single patch and narrow candidates keep the test short. The head starts at zero (spec section 1),
// so no gradient passes it in the very first step, and that of gamma is zero. The test looks at the
// second step, after an optimiser step that has moved only the head.
TEST(Gamma, HasAGradientInEverySelectingLayerAtTheStart) {
  ModelConfig config;
  config.image_size = 2, config.hidden_ratio = 1;
  const Parameters parameters = initialised(config, 0, at::kFloat);
  Optimizer optimizer(parameters, 0.9999);
  accumulate(config, parameters, 0);
  EXPECT_EQ(parameters["blocks.0.router.lateral.gamma"].grad().item<float>(), 0);
  optimizer.step(1e-4, 1);
  accumulate(config, parameters, 1);
  for (int r = 0; r < config.depth; ++r) {
    const std::string name = fmt::format("blocks.{}.router.lateral.gamma", r);
    EXPECT_EQ(parameters[name].item<float>(), 0) << name;
    EXPECT_NE(parameters[name].grad().item<float>(), 0) << name;
  }
}

// gamma gets a gradient exactly where Omega fires for some sample, so a test of just the routers
// shows that this does not depend on the seed.
TEST(Gamma, HasAGradientForEverySeed) {
  ModelConfig config;
  config.image_size = 2, config.hidden_ratio = 1, config.depth = 1;
  const Diffusion diffusion({});
  const Parameters parameters(parameter_specs(config), at::kFloat, true);
  const Denoiser denoiser(config, parameters, {});
  for (std::uint64_t seed = 1; seed <= 12; ++seed) {
    initialise(parameters, config, seed);
    parameters.gradient().zero_();
    const auto draws = diffusion.draw(seed, 0, 0, 128, {1}, at::kFloat);
    const Routing routing = denoiser.route(draws.t);
    at::manual_seed(seed);
    (routing[0].probability * at::randn(routing[0].probability.sizes())).sum().backward();
    EXPECT_NE(parameters["blocks.0.router.lateral.gamma"].grad().item<float>(), 0) << seed;
  }
}

}  // namespace
}  // namespace laterna::model
