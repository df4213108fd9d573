// The configuration: what is read, what is refused with which message, what is printed, and with
// which differences a run may resume.
#include "launch/config.h"

#include <cmath>
#include <regex>

#include "launch/training/trainer.h"
#include "tests/data/scratch_folder.h"

namespace laterna::launch {
namespace {

using data::expect_error;
using data::ScratchFolder;

Config with(const Settings& settings) { return parse_config("", "test", settings); }

/// Expects the TOML text to be refused with a message that contains all `parts`.
void expect_refused(const std::string& toml, std::initializer_list<std::string> parts) {
  SCOPED_TRACE(toml);
  expect_error<UsageError>([&] { parse_config(toml, "here.toml", {}); }, parts);
}
/// Expects the --set value to be refused with a message that contains all `parts`.
void expect_setting_refused(const std::string& setting, std::initializer_list<std::string> parts) {
  SCOPED_TRACE(setting);
  expect_error<UsageError>([&] { with({setting}); }, parts);
}

/// Returns every "table.key" with its printed value.
std::map<std::string, std::string> keys_of(const Config& config) {
  std::map<std::string, std::string> all;
  std::istringstream lines(to_toml(config));
  std::string table;
  for (std::string line; std::getline(lines, line);) {
    const auto equals = line.find(" = ");
    if (line.starts_with("[")) {
      table = line.substr(1, line.size() - 2);
    } else if (equals != std::string::npos) {
      all[table + "." + line.substr(0, equals)] = line.substr(equals + 3);
    }
  }
  return all;
}

TEST(Config, HasTheDefaultsOfTheSpec) {
  const std::map<std::string, std::string> wanted = {
      {"model.image_size", "28"},
      {"model.channels", "1"},
      {"model.patch", "2"},
      {"model.width", "384"},
      {"model.depth", "12"},
      {"model.heads", "6"},
      {"model.spiking_steps", "2"},
      {"model.hidden_ratio", "4"},
      {"model.candidates", "3"},
      {"model.selected", "2"},
      {"model.selection", "full"},
      {"model.lateral", "true"},
      {"model.gamma_start", "0.0"},
      {"model.aggregation_start", "one_minus_identity"},
      {"model.surrogate", "sigmoid"},
      {"diffusion.steps", "1000"},
      {"diffusion.beta_first", "1e-4"},
      {"diffusion.beta_last", "0.02"},
      {"training.batch", "128"},
      {"training.micro_batch", "0"},
      {"training.steps", "800000"},
      {"training.learning_rate", "1e-4"},
      {"training.clip_norm", "1.0"},
      {"training.ema", "0.9999"},
      {"training.seed", "0"},
      {"training.weighting", "uniform"},
      {"training.precision", "float32"},
      {"parallel.expert", "1"},
      {"parallel.threads", "0"},
      {"data.path", ""},
      {"data.flip", "false"},
      {"checkpoint.every", "1000"},
      {"checkpoint.minutes", "0.0"},
      {"checkpoint.keep", "3"},
      {"sampling.sampler", "ddpm"},
      {"sampling.steps", "1000"},
      {"sampling.count", "64"},
      {"sampling.seed", "0"},
      {"sampling.chunk", "64"},
      {"evaluation.every", "0"},
      {"evaluation.samples", "5000"},
      {"evaluation.reference", ""},
      {"evaluation.extractor", "builtin"},
      {"metrics.port", "9464"},
      {"metrics.address", "127.0.0.1"},
      {"watchdog.seconds", "300.0"}};
  auto found = keys_of(with({}));
  for (const auto& [key, value] : wanted) {
    ASSERT_TRUE(found.contains(key)) << key;
    Settings setting{key + "=" + value};
    EXPECT_EQ(to_toml(with(setting)), to_toml(with({}))) << key;
    found.erase(key);
  }
  // The remaining keys change nothing at their defaults.
  EXPECT_EQ(found, (std::map<std::string, std::string>{{"training.warmup", "0"},
                                                       {"training.decay", "0.0"}}));
}

TEST(Config, ReportsUnknownKeys) {
  expect_refused("[model]\nwidht = 3", {"here.toml", "model.widht", "allowed", "width"});
  expect_refused("[modell]\nwidth = 4", {"modell", "allowed", "model", "training"});
  expect_refused("width = 4", {"width", "allowed", "model"});
  expect_refused("model = 4", {"model", "table"});
  expect_refused("[training.extra]\nx = 1", {"training.extra"});
  expect_setting_refused("model.widht=3", {"--set", "model.widht", "width"});
  expect_setting_refused("nothing.at_all=3", {"nothing"});
  expect_setting_refused("model.width.more=3", {"model.width.more"});
}

TEST(Config, ReportsWrongTypes) {
  expect_refused("[model]\nwidth = \"wide\"", {"here.toml", "model.width", "wide", "integer"});
  expect_refused("[model]\nwidth = 3.5", {"model.width", "3.5", "integer"});
  expect_refused("[model]\nwidth = true", {"model.width", "integer"});
  expect_refused("[model]\nwidth = [4]", {"model.width", "integer"});
  expect_refused("[model.width]\nx = 4", {"model.width", "integer"});
  expect_refused("[model]\nlateral = 1", {"model.lateral", "true or false"});
  expect_refused("[model]\nsurrogate = 1", {"model.surrogate", "string"});
  expect_refused("[training]\nema = \"much\"", {"training.ema", "number"});
  expect_setting_refused("data.path=123", {"data.path", "string"});
  expect_setting_refused("training.batch=many", {"training.batch", "many", "integer"});
  expect_setting_refused("training.batch=", {"training.batch", "integer"});
  EXPECT_EQ(with({"training.ema=1"}).training.ema, 1.0);  // an integer is a number
}

TEST(Config, ReportsInvalidValues) {
  const std::vector<std::string> numbers = {
      "model.image_size",     "model.patch",         "model.width",        "model.depth",
      "model.heads",          "model.spiking_steps", "model.hidden_ratio", "model.candidates",
      "model.selected",       "model.channels",      "diffusion.steps",    "training.batch",
      "training.micro_batch", "training.steps",      "training.warmup",    "training.seed",
      "parallel.expert",      "checkpoint.every",    "checkpoint.keep",    "sampling.steps",
      "sampling.count",       "sampling.seed",       "sampling.chunk",     "evaluation.every",
      "evaluation.samples",   "metrics.port",        "parallel.threads"};
  const std::vector<std::string> reals = {
      "diffusion.beta_first", "diffusion.beta_last", "training.learning_rate", "training.decay",
      "training.clip_norm",   "training.ema",        "checkpoint.minutes",     "watchdog.seconds"};
  for (const auto& key : numbers) expect_setting_refused(key + "=-1", {key, "-1", "allowed"});
  for (const auto& key : reals) {
    expect_setting_refused(key + "=-1", {key, "-1", "allowed"});
    expect_setting_refused(key + "=nan", {key, "nan", "allowed"});
    expect_setting_refused(key + "=inf", {key, "inf", "allowed"});
  }
  EXPECT_EQ(numbers.size() + reals.size() + 13, keys_of(with({})).size());  // 13 other keys
  expect_setting_refused("model.gamma_start=nan", {"model.gamma_start", "finite"});
  expect_setting_refused("model.gamma_start=-inf", {"model.gamma_start", "finite"});
  EXPECT_EQ(with({"model.gamma_start=-2.5"}).model.gamma_start, -2.5);
  for (const char* key : {"model.width", "training.batch", "training.learning_rate",
                          "training.clip_norm", "checkpoint.keep", "watchdog.seconds"}) {
    expect_setting_refused(std::string(key) + "=0", {key, "allowed"});
  }
  expect_setting_refused("training.ema=1.5", {"training.ema", "at most 1"});
  expect_setting_refused("metrics.port=65536", {"metrics.port", "65535"});
  expect_setting_refused("model.channels=2", {"model.channels", "1 (grey) or 3"});
  expect_setting_refused("model.selection=all", {"model.selection", "all", "middle"});
  expect_setting_refused("model.aggregation_start=zero", {"aggregation_start", "random_binary"});
  expect_setting_refused("model.surrogate=relu", {"model.surrogate", "arctangent"});
  expect_setting_refused("training.precision=float16", {"training.precision", "bfloat16"});
  expect_setting_refused("training.weighting=snr", {"training.weighting", "uniform, min_snr"});
  expect_setting_refused("sampling.sampler=euler", {"sampling.sampler", "dpm-solver++"});
}

TEST(Config, ReportsConflictingValues) {
  expect_setting_refused("model.heads=5", {"model.heads", "5", "model.width", "384"});
  expect_setting_refused("model.patch=3", {"model.patch", "3", "model.image_size", "28"});
  expect_setting_refused("model.selected=4", {"model.selected", "4", "model.candidates", "3"});
  expect_setting_refused("sampling.steps=1001", {"sampling.steps", "diffusion.steps"});
  expect_setting_refused("diffusion.beta_last=1e-5", {"diffusion.beta_first", "beta_last"});
  expect_error<UsageError>([] { with({"model.width=9", "model.heads=3"}); }, {"model.width", "9"});
  // Conflicts are checked after all settings are applied: their order does not matter.
  EXPECT_EQ(with({"model.heads=5", "model.width=20"}).model.width, 20);
  EXPECT_EQ(with({"diffusion.steps=50", "sampling.steps=50"}).model.diffusion_steps, 50);
}

TEST(Config, ReadsSettingsAsTomlOrStrings) {
  EXPECT_EQ(with({"data.path=some folder/a=b"}).data.path, "some folder/a=b");
  EXPECT_EQ(with({"data.path=\"quoted # text\""}).data.path, "quoted # text");
  EXPECT_EQ(with({"data.path='C:\\x'"}).data.path, "C:\\x");
  EXPECT_EQ(with({"model.surrogate=arctangent"}).model.surrogate, "arctangent");
  EXPECT_EQ(with({"training.batch=1_000"}).training.batch, 1000);
  EXPECT_EQ(with({"training.learning_rate=2e-3"}).training.learning_rate, 2e-3);
  EXPECT_EQ(with({"data.flip=true"}).data.flip, true);
  EXPECT_EQ(with({"training.batch=3", "training.batch=4"}).training.batch, 4);  // the last wins
  EXPECT_EQ(parse_config("[training]\nbatch = 5", "f", {"training.seed=1"}).training.batch, 5);
  for (const char* form : {"training.batch", "batch=3", "=3", ".batch=3", "training.=3", ""}) {
    expect_setting_refused(form, {"--set", form, "table.key=value"});
  }
  expect_setting_refused("training.batch=1\nseed = 2", {"--set", "more than one value"});
}

TEST(Config, ReportsTomlErrorsWithTheirLine) {
  expect_refused("[model]\nwidth = 8\nheads 2\n", {"here.toml", "line 3"});
  expect_refused("[model]\nwidth = 8\nwidth = 8\n", {"here.toml", "line 3"});
  expect_refused("[model", {"here.toml", "line 1"});
}

TEST(Config, ReportsUnreadableFiles) {
  const ScratchFolder folder;
  expect_error<UsageError>([&] { read_config(folder / "none.toml", {}); },
                           {(folder / "none.toml").string(), "presets"});
  expect_error<UsageError>([&] { read_config(folder.path(), {}); }, {folder.path().string()});
}

// Every key but data.path has a default, so a file may be empty.
TEST(Config, ReadsAnEmptyFileAsTheDefaults) {
  const ScratchFolder folder;
  data::put(folder / "empty.toml", "");
  data::put(folder / "comment.toml", "# nothing\n");
  for (const char* name : {"comment.toml", "empty.toml"}) {
    EXPECT_NO_THROW(EXPECT_EQ(to_toml(read_config(folder / name, {})), to_toml(with({})))) << name;
  }
}

TEST(Config, PrintsTomlThatReadsBackTheSame) {
  Config config = with({});
  config.model.gamma_start = -0.0;
  config.training.learning_rate = std::nextafter(1e-4, 1);
  config.training.clip_norm = 1e300;
  config.training.ema = 1 - 1e-16;
  config.training.decay = 1.0 / 3;
  config.training.seed = std::numeric_limits<std::int64_t>::max();
  config.diffusion.beta_first = 4.9e-324;
  config.checkpoint.minutes = 1e22;
  config.watchdog.seconds = 12345678.9;
  config.evaluation.reference = "tab\t, unit \x01, umlaut \xc3\xa4";
  for (const char* path : {"plain", "with \"quotes\" and 'others'", "back\\slash", "two\nlines", "",
                           "'''\"\"\"", "# no comment", "ends with \\"}) {
    config.data.path = path;
    const std::string text = to_toml(config);
    const Config back = parse_config(text, "printed", {});
    EXPECT_EQ(back.data.path, config.data.path);
    EXPECT_EQ(back.evaluation.reference, config.evaluation.reference);
    EXPECT_EQ(to_toml(back), text);
    EXPECT_TRUE(std::signbit(back.model.gamma_start));
    EXPECT_EQ(back.training.learning_rate, config.training.learning_rate);
    EXPECT_EQ(back.training.clip_norm, config.training.clip_norm);
    EXPECT_EQ(back.training.ema, config.training.ema);
    EXPECT_EQ(back.training.decay, config.training.decay);
    EXPECT_EQ(back.training.seed, config.training.seed);
    EXPECT_EQ(back.diffusion.beta_first, config.diffusion.beta_first);
    EXPECT_EQ(back.checkpoint.minutes, config.checkpoint.minutes);
    EXPECT_EQ(back.watchdog.seconds, config.watchdog.seconds);
  }
}

// Spec section 3: the keys that may change when a run resumes; no other may.
TEST(Config, ARunResumesOnlyWithTheseDifferences) {
  const auto may_differ = [](const std::string& key) {
    return std::regex_match(
        key, std::regex("training\\.steps|training\\.micro_batch|data\\.path|"
                        "(parallel|checkpoint|sampling|evaluation|metrics|watchdog)\\..*"));
  };
  const std::map<std::string, std::string> other = {{"model.image_size", "32"},
                                                    {"model.channels", "3"},
                                                    {"model.patch", "4"},
                                                    {"model.width", "396"},
                                                    {"model.depth", "3"},
                                                    {"model.hidden_ratio", "2"},
                                                    {"model.heads", "4"},
                                                    {"model.selection", "\"none\""},
                                                    {"model.lateral", "false"},
                                                    {"model.aggregation_start", "\"scaled\""},
                                                    {"model.surrogate", "\"arctangent\""},
                                                    {"model.selected", "1"},
                                                    {"training.decay", "0.5"},
                                                    {"training.ema", "0.5"},
                                                    {"training.weighting", "\"min_snr\""},
                                                    {"training.precision", "\"float64\""},
                                                    {"data.path", "\"elsewhere\""},
                                                    {"data.flip", "true"},
                                                    {"sampling.sampler", "\"ddim\""},
                                                    {"sampling.steps", "9"},
                                                    {"evaluation.reference", "\"r\""},
                                                    {"evaluation.extractor", "\"e\""},
                                                    {"metrics.address", "\"0.0.0.0\""},
                                                    {"diffusion.beta_first", "0.001"},
                                                    {"diffusion.beta_last", "0.03"}};
  const Config stored = with({});
  EXPECT_TRUE(forbidden_differences(stored, stored).empty());
  for (const auto& [key, value] : keys_of(stored)) {
    if (key == "parallel.expert") continue;  // not changed here
    const auto given = other.find(key);
    const std::string changed =
        given == other.end() ? std::to_string(std::stoll(value) + 1000) : given->second;
    const Config wanted = with({key + "=" + changed});
    ASSERT_NE(to_toml(wanted), to_toml(stored)) << key;
    const auto differences = forbidden_differences(stored, wanted);
    ASSERT_EQ(differences.size(), may_differ(key) ? 0U : 1U) << key;
    if (may_differ(key)) continue;
    EXPECT_EQ(differences[0].key, key);
    EXPECT_EQ(differences[0].left, value);
    EXPECT_EQ(differences[0].right, keys_of(wanted)[key]);
  }
}

TEST(Rate, WarmsUpHoldsAndDecays) {
  TrainingConfig training;
  training.steps = 100, training.learning_rate = 2;
  EXPECT_EQ(training.rate_at(0), 2);
  EXPECT_EQ(training.rate_at(99), 2);
  training.warmup = 4;
  EXPECT_EQ(training.rate_at(0), 0.5);
  EXPECT_EQ(training.rate_at(2), 1.5);
  EXPECT_EQ(training.rate_at(3), 2);
  EXPECT_EQ(training.rate_at(99), 2);
  training.decay = 0.2;
  EXPECT_EQ(training.rate_at(80), 2);
  EXPECT_EQ(training.rate_at(90), 1);
  EXPECT_NEAR(training.rate_at(99), 0.1, 1e-15);
  EXPECT_EQ(training.rate_at(100), 0);
  training.decay = 1, training.warmup = 0;
  EXPECT_EQ(training.rate_at(0), 2);
  EXPECT_EQ(training.rate_at(50), 1);
}

// --- Presets

std::filesystem::path presets() { return LATERNA_SOURCES "/launch/presets"; }

TEST(Presets, AllAreReadAndTrainOnData) {
  std::set<std::string> names;
  for (const auto& entry : std::filesystem::directory_iterator(presets())) {
    const Config config = read_config(entry.path(), {});
    EXPECT_FALSE(config.data.path.empty()) << entry.path();
    names.insert(entry.path().stem().string());
  }
  for (const char* name : {"quickstart", "mnist-small", "fashion-small", "mnist", "fashion-mnist",
                           "cifar10", "celeba64", "bedroom64"}) {
    EXPECT_TRUE(names.contains(name)) << name;
  }
}

// Section IV-A of the paper: D 384 and A 6 for the MNIST data sets, D 768 and A 12 for the others;
// R 12, p 2, N 3, k 2, and T 2 (CIFAR-10: 4).
TEST(Presets, HaveThePapersSizes) {
  struct Wanted {
    const char* name;
    int size, channels, width, heads, steps;
  };
  for (const auto& w :
       {Wanted{"mnist", 28, 1, 384, 6, 2}, Wanted{"fashion-mnist", 28, 1, 384, 6, 2},
        Wanted{"cifar10", 32, 3, 768, 12, 4}, Wanted{"celeba64", 64, 3, 768, 12, 2},
        Wanted{"bedroom64", 64, 3, 768, 12, 2}}) {
    const Config config = read_config(presets() / (std::string(w.name) + ".toml"), {});
    EXPECT_EQ(to_toml(config), to_toml(with({fmt::format("model.image_size={}", w.size),
                                             fmt::format("model.channels={}", w.channels),
                                             fmt::format("model.width={}", w.width),
                                             fmt::format("model.heads={}", w.heads),
                                             fmt::format("model.spiking_steps={}", w.steps),
                                             "data.path=\"" + config.data.path + "\"",
                                             fmt::format("data.flip={}", config.data.flip)})))
        << w.name;
  }
}

}  // namespace
}  // namespace laterna::launch
