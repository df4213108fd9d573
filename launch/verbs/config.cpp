// `laterna config --explain [KEY]`: what the keys of the configuration mean; without a KEY the page
// docs/configuration.md, which a test compares with this output.
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <cstdio>
#include <type_traits>

#include "launch/collective.h"
#include "launch/config_keys.h"
#include "launch/verbs/verbs.h"

namespace laterna::launch {
namespace {

constexpr const char* kPreface =
    "# Configuration\n\n"
    "A training is configured by one TOML file, such as those in `launch/presets`. Every key can "
    "be set on the\n"
    "command line, too: `--set training.batch=256`. The resolved configuration is stored with the "
    "run.\n"
    "Keys marked *resume* may have another value when a run resumes; any other difference is "
    "refused.\n"
    "This page is the output of `laterna config --explain`; `laterna config --explain KEY` "
    "explains one key.\n";

template <typename Field>
constexpr const char* type_name() {
  if constexpr (std::is_same_v<Field, bool>) return "boolean";
  if constexpr (std::is_same_v<Field, std::int64_t>) return "integer";
  if constexpr (std::is_same_v<Field, double>) return "number";
  return "string";
}

template <typename Field>
std::string allowed_text(const Allowed& allowed) {
  if constexpr (std::is_same_v<Field, bool>) return "true, false";
  if constexpr (std::is_same_v<Field, std::string>) {
    return allowed.words.empty() ? "any" : fmt::format("{}", fmt::join(allowed.words, ", "));
  } else {
    return range_text(allowed);
  }
}

void explain_all() {
  std::string table;
  fmt::print("{}", kPreface);
  const Config defaults;
  for_each_key(defaults, [&]<typename Field>(const Key& key, const Field& field) {
    const auto dot = key.name.find('.');
    if (key.name.substr(0, dot) != table) {
      table = key.name.substr(0, dot);
      fmt::print(
          "\n## [{}]\n\n| key | type | default | allowed | | meaning "
          "|\n|---|---|---|---|---|---|\n",
          table);
    }
    fmt::print("| `{}` | {} | `{}` | {} | {} | {} |\n", key.name.substr(dot + 1),
               type_name<Field>(), to_text(field), allowed_text<Field>(key.allowed),
               key.allowed.may_differ ? "resume" : "", key.meaning);
  });
}

void explain(const std::string& name) {
  bool found = false;
  std::vector<std::string> names;
  const Config defaults;
  for_each_key(defaults, [&]<typename Field>(const Key& key, const Field& field) {
    names.push_back(key.name);
    if (key.name != name) return;
    found = true;
    fmt::print("{} = {}\n{}\ntype: {}; allowed: {}\n{}\n", key.name, to_text(field), key.meaning,
               type_name<Field>(), allowed_text<Field>(key.allowed),
               key.allowed.may_differ ? "A run may resume with another value."
                                      : "Fixed for a run: resuming with another value is refused.");
  });
  if (!found) {
    throw UsageError(
        fmt::format("--explain {}: unknown key; allowed: {}", name, fmt::join(names, ", ")));
  }
}

}  // namespace

void add_config(CLI::App& app, Action& action) {
  auto* verb = app.add_subcommand("config", "Explain the keys of the configuration");
  auto key = std::make_shared<std::string>();
  verb->add_option("--explain", *key, "All keys as Markdown, or one: training.batch")
      ->expected(0, 1)
      ->required();
  verb->callback([key, &action] {
    action.run = [key](dist::World& world) {
      require_single_process(world, "config");
      key->empty() ? explain_all() : explain(*key);
      return 0;
    };
  });
}

}  // namespace laterna::launch
