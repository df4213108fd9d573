#include "launch/config.h"

#include <fmt/format.h>
#include <fmt/ranges.h>
#include <toml++/toml.h>

#include <cmath>
#include <fstream>
#include <set>
#include <sstream>

#include "launch/config_keys.h"

namespace laterna::launch {
namespace {

void check_number(const std::string& key, double value, const Allowed& allowed) {
  const bool low = allowed.above_low ? value > allowed.low : value >= allowed.low;
  if (std::isfinite(value) && low && value <= allowed.high) return;
  throw UsageError(fmt::format("{} = {} is invalid; allowed: {}", key, value, range_text(allowed)));
}

[[noreturn]] void wrong_type(const std::string& key, const toml::node& node, const char* wanted) {
  std::ostringstream text;
  node.visit([&](const auto& value) { text << value; });
  throw UsageError(fmt::format("{} = {} has the wrong type; allowed: {}", key, text.str(), wanted));
}

void assign(const std::string& key, const toml::node& node, std::int64_t& field,
            const Allowed& allowed) {
  if (!node.is_integer()) wrong_type(key, node, "an integer");
  field = node.as_integer()->get();
  check_number(key, double(field), allowed);
}

void assign(const std::string& key, const toml::node& node, double& field, const Allowed& allowed) {
  if (!node.is_number()) wrong_type(key, node, "a number");
  field = *node.value<double>();
  check_number(key, field, allowed);
}

void assign(const std::string& key, const toml::node& node, bool& field, const Allowed&) {
  if (!node.is_boolean()) wrong_type(key, node, "true or false");
  field = node.as_boolean()->get();
}

void assign(const std::string& key, const toml::node& node, std::string& field,
            const Allowed& allowed) {
  if (!node.is_string()) wrong_type(key, node, "a string");
  field = node.as_string()->get();
  if (allowed.words.empty()) return;
  for (const auto& word : allowed.words) {
    if (word == field) return;
  }
  throw UsageError(fmt::format("{} = \"{}\" is unknown; allowed: {}", key, field,
                               fmt::join(allowed.words, ", ")));
}

void check_names(const toml::table& root, const std::string& origin) {
  std::set<std::string> tables, keys;
  Config defaults;
  for_each_key(defaults, [&](const Key& key, auto&) {
    keys.insert(key.name);
    tables.insert(key.name.substr(0, key.name.find('.')));
  });
  for (const auto& [table, node] : root) {
    const std::string name(table.str());
    if (!tables.contains(name)) {
      throw UsageError(fmt::format("{}: unknown key {}; allowed tables: {}", origin, name,
                                   fmt::join(tables, ", ")));
    }
    if (!node.is_table()) throw UsageError(fmt::format("{}: {} must be a table", origin, name));
    for (const auto& [key, value] : *node.as_table()) {
      const std::string full = fmt::format("{}.{}", name, key.str());
      if (keys.contains(full)) continue;
      std::vector<std::string> known;
      for (const auto& candidate : keys) {
        if (candidate.starts_with(name + ".")) known.push_back(candidate.substr(name.size() + 1));
      }
      throw UsageError(fmt::format("{}: unknown key {}; allowed in [{}]: {}", origin, full, name,
                                   fmt::join(known, ", ")));
    }
  }
}

void apply(Config& config, const toml::table& root, const std::string& origin) {
  check_names(root, origin);
  for_each_key(config, [&](const Key& key, auto& field) {
    if (const auto node = root.at_path(key.name)) {
      try {
        assign(key.name, *node.node(), field, key.allowed);
      } catch (const UsageError& error) {
        throw UsageError(fmt::format("{}: {}", origin, error.what()));
      }
    }
  });
}

/// Returns the TOML document that "a.b=value" stands for.
toml::table parse_setting(const std::string& setting) {
  const auto equals = setting.find('=');
  const std::string key = setting.substr(0, equals);
  const auto dot = key.find('.');
  if (equals == std::string::npos || dot == std::string::npos || dot == 0 ||
      dot + 1 == key.size()) {
    throw UsageError(fmt::format(
        "--set {}: is not of the form table.key=value, such as training.batch=256", setting));
  }
  const std::string value = setting.substr(equals + 1);
  toml::table table;
  try {
    table = toml::parse(fmt::format("value = {}", value));
  } catch (const toml::parse_error&) {
    table.insert_or_assign("value", value);
  }
  toml::table inner, root;
  if (table.size() != 1) throw UsageError(fmt::format("--set {}: more than one value", setting));
  inner.insert_or_assign(key.substr(dot + 1), *table.get("value"));
  root.insert_or_assign(key.substr(0, dot), inner);
  return root;
}

void require(bool condition, const std::string& message) {
  if (!condition) throw UsageError(message);
}

/// Checks what the `Allowed` of a single key cannot express.
void check_combinations(const Config& c) {
  const auto& m = c.model;
  require(m.channels != 2, "model.channels = 2 is invalid; allowed: 1 (grey) or 3 (colour)");
  require(m.image_size % m.patch == 0,
          fmt::format("model.patch = {} does not divide model.image_size = {}; choose a divisor",
                      m.patch, m.image_size));
  require(m.width % m.heads == 0,
          fmt::format("model.heads = {} does not divide model.width = {}; choose a divisor",
                      m.heads, m.width));
  require(m.width % 2 == 0, fmt::format("model.width = {} is odd; the time embedding needs an even "
                                        "width",
                                        m.width));
  require(m.selected <= m.candidates,
          fmt::format("model.selected = {} is more than model.candidates = {}; allowed: 1 to {}",
                      m.selected, m.candidates, m.candidates));
  require(c.diffusion.beta_first <= c.diffusion.beta_last,
          fmt::format("diffusion.beta_first = {} is more than diffusion.beta_last = {}",
                      c.diffusion.beta_first, c.diffusion.beta_last));
  require(c.sampling.steps <= c.diffusion.steps,
          fmt::format("sampling.steps = {} is more than diffusion.steps = {}", c.sampling.steps,
                      c.diffusion.steps));
}

}  // namespace

std::string to_text(std::int64_t value) { return fmt::format("{}", value); }
std::string to_text(bool value) { return value ? "true" : "false"; }
std::string to_text(double value) {
  std::string text = fmt::format("{}", value);  // shortest form that reads back to the same bits
  if (text.find_first_of(".e") == std::string::npos) text += ".0";
  return text;
}
std::string to_text(const std::string& value) {
  std::ostringstream text;
  text << toml::value<std::string>(value);
  return text.str();
}

std::string range_text(const Allowed& allowed) {
  if (std::isinf(allowed.low) && std::isinf(allowed.high)) return "a finite number";
  if (std::isinf(allowed.high)) {
    return fmt::format("{} {}", allowed.above_low ? "more than" : "at least", allowed.low);
  }
  return fmt::format("{} {} and at most {}", allowed.above_low ? "more than" : "at least",
                     allowed.low, allowed.high);
}

double TrainingConfig::rate_at(std::int64_t step) const {
  double rate = learning_rate;
  if (step < warmup) rate *= double(step + 1) / double(warmup);
  const double start = double(steps) * (1 - decay);
  if (decay > 0 && double(step) > start) {
    rate *= std::max(0.0, double(steps - step) / (double(steps) - start));
  }
  return rate;
}

dist::Placement Config::placement() const { return {model.candidates, parallel.expert}; }

model::Precision Config::precision() const {
  return {training.precision == "float64", training.precision == "bfloat16"};
}

model::SamplerOptions Config::sampler() const {
  return {sampling.sampler, sampling.steps, static_cast<std::uint64_t>(sampling.seed),
          sampling.chunk};
}

Config parse_config(const std::string& toml, const std::string& origin, const Settings& settings) {
  Config config;
  try {
    apply(config, toml::parse(toml), origin);
  } catch (const toml::parse_error& error) {
    throw UsageError(fmt::format("{}: line {}: {}", origin, error.source().begin.line,
                                 std::string(error.description())));
  }
  for (const auto& setting : settings) apply(config, parse_setting(setting), "--set " + setting);
  try {
    check_combinations(config);
  } catch (const UsageError& error) {
    throw UsageError(fmt::format("{}: {}", origin, error.what()));
  }
  config.model.diffusion_steps = config.diffusion.steps;
  return config;
}

Config read_config(const std::filesystem::path& path, const Settings& settings) {
  std::ifstream file(path);
  if (!file || std::filesystem::is_directory(path)) {
    throw UsageError(
        fmt::format("{}: cannot be read; give --config a TOML file, such as one in "
                    "launch/presets",
                    path.string()));
  }
  const std::string text{std::istreambuf_iterator<char>(file), {}};
  return parse_config(text, path.string(), settings);
}

std::string to_toml(const Config& config) {
  std::string text, table;
  for_each_key(config, [&](const Key& key, const auto& field) {
    const auto dot = key.name.find('.');
    if (key.name.substr(0, dot) != table) {
      table = key.name.substr(0, dot);
      text += fmt::format("{}[{}]\n", text.empty() ? "" : "\n", table);
    }
    text += fmt::format("{} = {}\n", key.name.substr(dot + 1), to_text(field));
  });
  return text;
}

std::vector<Difference> forbidden_differences(const Config& stored, const Config& wanted) {
  std::vector<std::pair<std::string, std::string>> left;
  for_each_key(stored, [&](const Key& key, const auto& field) {
    if (!key.allowed.may_differ) left.emplace_back(key.name, to_text(field));
  });
  std::vector<Difference> differences;
  std::size_t i = 0;
  for_each_key(wanted, [&](const Key& key, const auto& field) {
    if (key.allowed.may_differ) return;
    const std::string right = to_text(field);
    if (left[i].second != right) differences.push_back({key.name, left[i].second, right});
    ++i;
  });
  return differences;
}

}  // namespace laterna::launch
