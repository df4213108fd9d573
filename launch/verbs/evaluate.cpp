// `laterna evaluate`: compares the images that a run samples with a data set or its statistics;
// also the images of a data set instead of a run's, or two statistics files. The last line of the
// output is JSON.
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <cmath>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>

#include "data/error.h"
#include "data/files/durable_file.h"
#include "launch/collective.h"
#include "launch/evaluation/evaluation.h"
#include "launch/evaluation/sampling.h"
#include "launch/training/run_folder.h"
#include "launch/verbs/verbs.h"
#include "monitoring/quality/frechet.h"
#include "monitoring/quality/statistics_file.h"
#include "monitoring/telemetry/run_log.h"

namespace laterna::launch {
namespace {

constexpr std::int64_t kMostListed = 16;  // number of classes whose shares fit on a line

struct Request {
  RunWeights weights;
  std::string images;
  std::vector<std::string> statistics;
  EvaluatorOptions options{.reference = "", .extractor = "", .samples = 0};
  std::string output;
  Settings settings;
};

std::string table(const monitoring::EvaluationRecord& r) {
  std::string text = fmt::format(
      "FID           {:.4f}   95% interval {:.4f} to {:.4f}\n"
      "FID-infinity  {:.4f}   extrapolated to infinitely many images\n",
      r.fid, r.fid_low, r.fid_high, r.fid_infinity);
  if (std::isnan(r.kid)) {
    return text + "KID, precision and recall need a reference with features, such as a data set\n";
  }
  return text + fmt::format(
                    "KID           {:.6f}   deviation {:.6f}\n"
                    "precision     {:.4f}\n"
                    "recall        {:.4f}\n",
                    r.kid, r.kid_deviation, r.precision, r.recall);
}

/// Returns the share of images in each class, in percent, as columns.
std::string class_shares(const monitoring::Naming& naming) {
  std::string text;
  for (const auto count : naming.assigned) {
    text += fmt::format("{:6.1f}", 100 * double(count) / double(naming.images()));
  }
  return text;
}

/// Returns how the classifier names the generated images, next to how it names real images that it
/// was not trained on.
std::string naming_table(const monitoring::Classifier* classifier, const Evaluated& evaluated) {
  if (!classifier) {
    return "named         unknown: the network is not a classifier (`laterna features train` makes "
           "one)\n";
  }
  const auto& r = evaluated.record;
  const auto& real = classifier->origin();
  std::string text = fmt::format(
      "named         {:.4f}   share with a class probability above {}; of real images ({}) {:.4f}\n"
      "classes       {:.2f}     effective number, of {}; of real images {:.2f}\n",
      r.named_share, monitoring::kNamedProbability, real.test_data, r.named_share_real,
      r.effective_classes, classifier->classes(), r.effective_classes_real);
  if (classifier->classes() <= kMostListed) {
    text += fmt::format("  in each, %  {}\n  of real, %  {}\n", class_shares(evaluated.naming),
                        class_shares(real.test_naming));
  }
  return text +
         "              a proxy for what a person can name: a network may be as sure of noise\n";
}

/// Prints the figures, and writes the statistics to `output` unless it is empty; only on rank 0.
void report(const std::string& what, const Evaluator& evaluator, const Evaluated& evaluated,
            const std::string& output) {
  const auto& record = evaluated.record;
  fmt::print("{} images of {} ({:.1f} images/s)\nagainst {}\n{}{}{}\n", record.samples, what,
             record.images_per_second, evaluator.description(), table(record),
             naming_table(evaluator.classifier(), evaluated), monitoring::to_text(record));
  std::fflush(stdout);
  if (!output.empty()) monitoring::write_statistics(output, evaluated.statistics);
}

void evaluate_run(const Request& request, dist::World& world) {
  std::unique_ptr<LoadedWeights> weights;
  Config config;
  auto options = request.options;
  run_collectively(world, [&] {
    config = read_run_config(request.weights.run, request.settings);
    weights = std::make_unique<LoadedWeights>(load_sampled_weights(request.weights, config, world));
    const auto& c = config.evaluation;
    if (options.reference.empty()) {
      options.reference = c.reference.empty() ? config.data.path : c.reference;
    }
    if (options.extractor.empty()) options.extractor = c.extractor;
    if (options.samples == 0) options.samples = c.samples;
  });
  Evaluator evaluator(options, image_shape(config), world);
  const auto evaluated = evaluator.run(*weights, config);
  run_collectively(world, [&] {
    if (world.rank() != 0) return;
    report(fmt::format("step {} of {}{}", weights->step, request.weights.run,
                       request.weights.raw ? " (raw weights)" : ""),
           evaluator, evaluated, request.output);
  });
}

void evaluate_images(const Request& request, dist::World& world) {
  std::unique_ptr<data::ImageSet> images;
  auto options = request.options;
  run_collectively(world, [&] {
    images = std::make_unique<data::ImageSet>(data::ImageSet::open(request.images));
    if (options.reference.empty()) throw UsageError("--images needs a --reference to compare with");
    if (options.extractor.empty()) options.extractor = "builtin";
    options.samples = images->count();
  });
  Evaluator evaluator(options, {images->channels(), images->height(), images->width()}, world);
  const auto evaluated = evaluator.run(*images);
  run_collectively(world, [&] {
    if (world.rank() != 0) return;
    report(fmt::format("the {} split of {}", images->split(), images->name()), evaluator, evaluated,
           request.output);
  });
}

void compare_statistics(const std::string& first, const std::string& second) {
  const auto a = monitoring::read_statistics(first), b = monitoring::read_statistics(second);
  const auto differ = monitoring::comparison_differences(a, b);
  if (!differ.empty()) {
    throw data::InputError(
        fmt::format("{} and {} cannot be compared: {}", first, second, fmt::join(differ, "; ")));
  }
  const double fid = monitoring::frechet_distance(a.statistics, b.statistics);
  fmt::print("{}\nagainst {}\nFID           {:.6f}\n{}\n", first, second, fid,
             nlohmann::json{{"fid", fid}}.dump());
}

int evaluate(const Request& request, dist::World& world) {
  if (!request.statistics.empty()) {
    require_single_process(world, "evaluate --statistics");
    compare_statistics(request.statistics[0], request.statistics[1]);
    return 0;
  }
  require_one_world(world);
  run_collectively(world, [&] {
    if (world.rank() == 0 && !request.output.empty()) data::try_writing(request.output);
  });
  world.open_device();
  if (request.images.empty()) {
    evaluate_run(request, world);
  } else {
    evaluate_images(request, world);
  }
  return 0;
}

}  // namespace

void add_evaluate(CLI::App& app, Action& action) {
  const auto request = std::make_shared<Request>();
  auto* verb =
      app.add_subcommand("evaluate",
                         "Measure image quality, on any number of ranks: FID, KID, precision, "
                         "recall and the share of images that a classifier is sure of (a proxy for "
                         "what a person can name)");
  add_weights_options(*verb, request->weights);
  auto* run = verb->get_option("--run")->required(false);
  auto* images = verb->add_option("--images", request->images,
                                  "Instead of --run: evaluate the images of this data set");
  auto* two = verb->add_option("--statistics", request->statistics,
                               "Instead of --run: compare two statistics files (.npz)")
                  ->expected(2);
  auto* reference = verb->add_option("--reference", request->options.reference,
                                     "A data set's folder or statistics (.npz) (default: the run's "
                                     "evaluation.reference, or its data set)");
  auto* extractor = verb->add_option(
      "--extractor", request->options.extractor,
      "A TorchScript file, an .h5 file of features train, or builtin: features.h5 in the reference "
      "(default: evaluation.extractor)");
  auto* samples = verb->add_option("--samples", request->options.samples,
                                   "Number of images to sample (default: evaluation.samples)")
                      ->check(CLI::PositiveNumber);
  auto* force = verb->add_flag("--force", request->options.force,
                               "Evaluate even without more images than the network has features");
  auto* output = verb->add_option("--output", request->output,
                                  "Also write the statistics of the images to this file (.npz)");
  auto* set =
      verb->add_option("--set", request->settings,
                       "Override a key of the run's configuration: table.key=value, such as "
                       "sampling.sampler=ddim; repeatable")
          ->take_all()
          ->allow_extra_args(false);
  for (auto* flag : {verb->get_option("--step"), verb->get_option("--raw"), samples, set}) {
    flag->needs(run);
  }
  images->excludes(run);
  for (auto* flag : {run, images, reference, extractor, force, output}) flag->excludes(two);
  verb->callback([&action, request] {
    if (request->weights.run.empty() && request->images.empty() && request->statistics.empty()) {
      throw CLI::RequiredError("one of --run, --images, --statistics");
    }
    action.run = [request](dist::World& world) { return evaluate(*request, world); };
  });
}

}  // namespace laterna::launch
