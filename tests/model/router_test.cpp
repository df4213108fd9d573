// Tests the parameters and the routers: names and start values of the parameters, the lateral
// connection against tensor operations, ties, and that a sample's selection does not depend on its
// batch.
#include "model/router.h"

#include <cmath>
#include <set>

#include "model/denoiser.h"
#include "model/diffusion.h"
#include "model/initialise.h"
#include "model/optimizer.h"
#include "model/spiking/norm_lif.h"
#include "tests/model/tensors.h"

namespace laterna::model {
namespace {

ModelConfig tiny() {
  ModelConfig config;
  config.image_size = 4, config.width = 34, config.depth = 3, config.heads = 2;
  config.hidden_ratio = 1, config.spiking_steps = 4, config.diffusion_steps = 50;
  return config;
}

Parameters initialised(const ModelConfig& config, std::uint64_t seed,
                       at::ScalarType dtype = at::kDouble) {
  Parameters parameters(parameter_specs(config), dtype, true);
  initialise(parameters, config, seed);
  return parameters;
}

// --- Parameters ---

TEST(ParameterSpecs, MatchTheSpecification) {
  ModelConfig config = tiny();
  config.selection = "head", config.hidden_ratio = 2, config.channels = 3;
  std::map<std::string, std::vector<std::int64_t>> wanted = {
      {"embed.weight", {34, 3, 2, 2}}, {"embed.bias", {34}},  {"position", {1, 4, 34}},
      {"time.weight", {50, 34}},       {"norm.weight", {34}}, {"norm.bias", {34}},
      {"head.weight", {12, 34}},       {"head.bias", {12}}};
  for (int layer = 0; layer < 3; ++layer) {
    const std::string block = fmt::format("blocks.{}.", layer);
    const auto linear = [&](const std::string& name, std::int64_t out, std::int64_t in) {
      wanted[block + name + ".weight"] = {out, in};
      wanted[block + name + ".bias"] = {out};
    };
    const auto norm = [&](const std::string& name, std::int64_t width) {
      wanted[block + name + ".weight"] = wanted[block + name + ".bias"] = {width};
    };
    linear("time", 34, 34);
    linear("attention.qkv", 102, 34);
    linear("attention.project", 34, 34);
    for (const char* part : {"", "_q", "_k", "_v"}) norm(std::string("attention.norm") + part, 34);
    norm("candidates.norm", 34);
    for (int j = 0; j < (layer == 0 ? 3 : 1); ++j) {
      linear(fmt::format("candidates.{}.up", j), 68, 34);
      norm(fmt::format("candidates.{}.norm", j), 68);
      linear(fmt::format("candidates.{}.down", j), 34, 68);
    }
    if (layer > 0) continue;
    linear("router.select", 3, 34);
    wanted[block + "router.lateral.gamma"] = wanted[block + "router.lateral.threshold"] = {};
    wanted[block + "router.lateral.aggregation"] = {3, 3};
  }
  const auto shapes = [](const ModelConfig& c) {
    std::map<std::string, std::vector<std::int64_t>> found;
    std::int64_t end = 0;
    for (const auto& spec : parameter_specs(c)) {
      EXPECT_TRUE(found.emplace(spec.name, spec.shape).second) << spec.name << " twice";
      EXPECT_EQ(spec.offset % 16, 0);
      EXPECT_GE(spec.offset, end);
      end = spec.offset + spec.size;
    }
    return found;
  };
  EXPECT_EQ(shapes(config), wanted);
  config.lateral = false;
  for (const char* name : {"gamma", "aggregation", "threshold"}) {
    wanted.erase(std::string("blocks.0.router.lateral.") + name);
  }
  EXPECT_EQ(shapes(config), wanted);
}

TEST(Parameters, AreViewsOfTwoFlatBuffers) {
  const Parameters parameters(parameter_specs(tiny()), at::kFloat, true);
  parameters["blocks.2.time.weight"].detach().fill_(3);
  EXPECT_EQ(parameters.values().sum().item<double>(), 3 * 34 * 34);
  (2 * parameters["norm.bias"]).sum().backward();
  EXPECT_EQ(parameters.gradient().sum().item<double>(), 2 * 34);
  EXPECT_THROW(parameters["blocks.3.time.weight"], std::out_of_range);
}

TEST(ModelConfig, LayersThatSelect) {
  const auto layers = [](const char* selection, std::int64_t depth) {
    ModelConfig config;
    config.selection = selection, config.depth = depth;
    std::vector<int> all;
    for (int r = 0; r < depth; ++r) all.push_back(config.selects(r));
    return all;
  };
  EXPECT_EQ(layers("full", 4), (std::vector{1, 1, 1, 1}));
  EXPECT_EQ(layers("none", 4), (std::vector{0, 0, 0, 0}));
  EXPECT_EQ(layers("head", 12), (std::vector{1, 1, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0}));
  EXPECT_EQ(layers("middle", 12), (std::vector{0, 0, 0, 0, 1, 1, 1, 1, 0, 0, 0, 0}));
  EXPECT_EQ(layers("tail", 12), (std::vector{0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1}));
  // r < R/3 and r >= 2R/3 at R = 4: head below 1.33, tail from 2.67 on.
  EXPECT_EQ(layers("head", 4), (std::vector{1, 1, 0, 0}));
  EXPECT_EQ(layers("middle", 4), (std::vector{0, 0, 1, 0}));
  EXPECT_EQ(layers("tail", 4), (std::vector{0, 0, 0, 1}));
}

TEST(Initialise, IsAPureFunctionOfTheSeed) {
  const auto config = tiny();
  const at::Tensor first = initialised(config, 3).values();
  EXPECT_TRUE(at::equal(first, initialised(config, 3).values()));
  EXPECT_FALSE(at::equal(first, initialised(config, 4).values()));
  EXPECT_TRUE(at::equal(first.to(at::kFloat), initialised(config, 3, at::kFloat).values()));
}

TEST(Initialise, FollowsTheSpecification) {
  ModelConfig config;  // the paper's width, so that variances can be measured
  config.depth = 4, config.hidden_ratio = 1, config.gamma_start = 0.25;
  const Parameters p = initialised(config, 0, at::kFloat);
  for (const std::int64_t t : {0, 1, 17, 999}) {
    for (const std::int64_t i : {0, 1, 100, 191}) {
      const double angle = double(t) * std::pow(10000.0, -double(i) / 192);
      EXPECT_NEAR(p["time.weight"][t][i].item<double>(), std::sin(angle), 1e-6);
      EXPECT_NEAR(p["time.weight"][t][192 + i].item<double>(), std::cos(angle), 1e-6);
    }
  }
  const auto silu_squared = at::silu(p["time.weight"]).square().sum(1).mean().item<double>();
  std::vector<at::Tensor> router;
  std::set<float> first_weights;
  for (int r = 0; r < 4; ++r) {
    const std::string block = fmt::format("blocks.{}.", r);
    router.push_back(p[block + "router.select.weight"].flatten());
    first_weights.insert(router.back()[0].item<float>());
    EXPECT_EQ(p[block + "router.lateral.gamma"].item<double>(), 0.25);
    EXPECT_EQ(p[block + "router.lateral.threshold"].item<double>(), 0.5);
    const at::Tensor up = p[block + "candidates.1.up.weight"];
    EXPECT_NEAR(up.abs().max().item<double>(), std::sqrt(6.0 / 768), 1e-4);
    EXPECT_NEAR(up.var().item<double>(), 2.0 / 768, 5e-5);
  }
  EXPECT_EQ(first_weights.size(), 4U);  // no two layers have the same draws
  const at::Tensor all = at::cat(router);
  // The estimate has a standard deviation of 0.02.
  EXPECT_NEAR(all.square().mean().item<double>() * silu_squared, 1, 0.1);
  EXPECT_NEAR(p["position"].std().item<double>(), 2, 0.05);
  EXPECT_NEAR(p["embed.weight"].square().sum({1, 2, 3}).mean().item<double>(), 1, 0.1);
  EXPECT_EQ(p["head.weight"].abs().max().item<double>(), 0);
  for (const auto& spec : p.specs()) {
    if (spec.name.ends_with(".bias")) {
      const bool attention = spec.name.find("norm_") != std::string::npos;  // of q, k or v
      const at::Tensor start = at::full_like(p[spec.name], attention ? 0.7 : 0);
      EXPECT_TRUE(at::equal(p[spec.name], start)) << spec.name;
    } else if (spec.name.find("norm") != std::string::npos) {
      EXPECT_TRUE(at::equal(p[spec.name], at::ones_like(p[spec.name]))) << spec.name;
    }
  }
}

TEST(Initialise, ImplementsEveryAggregationStart) {
  ModelConfig config = tiny();
  config.candidates = 4;
  const at::Tensor ones = at::ones({4, 4}, at::kDouble), eye = at::eye(4, at::kDouble);
  const auto start = [&](const char* name) {
    config.aggregation_start = name;
    return initialised(config, 0)["blocks.1.router.lateral.aggregation"].detach();
  };
  EXPECT_TRUE(at::equal(start("one_minus_identity"), ones - eye));
  EXPECT_TRUE(at::equal(start("additive_inverse"), eye - ones));
  EXPECT_TRUE(at::equal(start("scaled"), 100 * (ones - eye)));
  EXPECT_TRUE(at::equal(start("inverse_scaled"), 100 * (eye - ones)));
  const at::Tensor random = start("random_binary");
  EXPECT_TRUE(at::equal(random * random, random));
  EXPECT_GT(random.sum().item<double>(), 0);
  EXPECT_LT(random.sum().item<double>(), 16);
  EXPECT_THROW(start("zero"), std::invalid_argument);
}

// --- Routing ---

struct Plain {
  at::Tensor probability, corrected, spikes;  // [T, B, N]
};

/// Eqs 9-12 in tensor operations; gamma undefined: no lateral connection.
Plain plain_routing(const at::Tensor& e, const at::Tensor& weight, const at::Tensor& bias,
                    const at::Tensor& gamma, const at::Tensor& aggregation,
                    const at::Tensor& threshold, std::int64_t steps, kernels::Surrogate surrogate) {
  const at::Tensor logits = at::linear(e, weight, bias);  // [B, N]
  std::vector<at::Tensor> corrected, spikes;
  at::Tensor m = at::zeros_like(logits);
  for (std::int64_t t = 0; t < steps; ++t) {
    corrected.push_back(logits);
    spikes.push_back(at::zeros_like(logits));
    if (!gamma.defined()) continue;
    const at::Tensor u = m + (at::mm(logits, aggregation.t()) - m) / 2;
    spikes[t] = spike(u - threshold, surrogate);
    m = u * (1 - spikes[t].detach());
    corrected[t] = logits - gamma * spikes[t];
  }
  const at::Tensor lhat = at::stack(corrected);
  return {at::softmax(lhat, -1), lhat, at::stack(spikes)};
}

/// Compares a router with plain_routing(). Returns whether a selection differs between spiking
/// steps.
bool expect_routing(const ModelConfig& config, at::ScalarType dtype) {
  const Parameters p(parameter_specs(config), dtype, true);
  {
    const at::NoGradGuard no_grad;
    for (const auto& view : p.views()) view.copy_(at::randn(view.sizes(), view.options()));
    p["blocks.1.router.select.weight"].div_(4);
    if (config.lateral) p["blocks.1.router.lateral.gamma"].fill_(2);
    if (config.lateral) p["blocks.1.router.lateral.threshold"].fill_(0.4);
  }
  at::Tensor e = at::randn({30, config.width}, dtype).requires_grad_();
  const LayerRouting routing = Router(p, config, 1).route(e);
  const at::Tensor grad = at::randn(routing.probability.sizes(), dtype);
  routing.probability.backward(grad);

  std::vector<at::Tensor> wide;  // float64 for any dtype, as the router's own sums are
  std::vector<std::string> names = {"select.weight", "select.bias"};
  if (config.lateral) {
    for (const char* n : {"gamma", "aggregation", "threshold"}) {
      names.push_back(std::string("lateral.") + n);
    }
  }
  for (auto& name : names) {
    name = "blocks.1.router." + name;
    wide.push_back(p[name].detach().to(at::kDouble).requires_grad_());
  }
  wide.resize(5);
  at::Tensor wide_e = e.detach().to(at::kDouble).requires_grad_();
  const Plain plain = plain_routing(wide_e, wide[0], wide[1], wide[2], wide[3], wide[4],
                                    config.spiking_steps, surrogate_from(config.surrogate));
  plain.probability.backward(grad.to(at::kDouble));
  const double tolerance = dtype == at::kDouble ? 1e-12 : 1e-6;
  expect_close(routing.probability, plain.probability, tolerance, "probability");
  EXPECT_TRUE(at::equal(routing.mask, largest(plain.corrected.detach(), config.selected)));
  expect_close(e.grad(), wide_e.grad(), tolerance, "embedding");
  for (std::size_t i = 0; i < names.size(); ++i) {
    expect_close(p[names[i]].grad(), wide[i].grad(), tolerance, names[i]);
  }
  EXPECT_EQ(routing.probability.scalar_type(), dtype);
  EXPECT_EQ(routing.layer, 1);
  return routing.mask.ne(routing.mask[0]).any().item<bool>();
}

TEST(Router, MatchesItsReference) {
  at::manual_seed(11);
  ModelConfig config = tiny();
  int changing = 0;
  for (const std::int64_t steps : {1, 2, 3, 4}) {
    for (const auto& [count, selected] : {std::pair{1, 1}, std::pair{3, 2}, std::pair{5, 3}}) {
      for (const char* surrogate : {"sigmoid", "arctangent"}) {
        for (const bool lateral : {true, false}) {
          config.spiking_steps = steps, config.candidates = count, config.selected = selected;
          config.surrogate = surrogate, config.lateral = lateral;
          SCOPED_TRACE(fmt::format("T {} N {} k {} {} lateral {}", steps, count, selected,
                                   surrogate, lateral));
          changing += expect_routing(config, at::kDouble);
          changing += expect_routing(config, at::kFloat);
        }
      }
    }
  }
  EXPECT_GT(changing, 8);  // the lateral connection changes selections
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
