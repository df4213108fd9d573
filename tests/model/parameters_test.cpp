// Tests the parameters: their names, shapes and start values, and which layers select.
#include "model/parameters.h"

#include <cmath>
#include <map>
#include <set>

#include "tests/model/tensors.h"
#include "tests/model/tiny.h"

namespace laterna::model {
namespace {

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

}  // namespace
}  // namespace laterna::model
