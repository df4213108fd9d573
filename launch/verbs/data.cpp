// `laterna data`: makes data sets (HDF5 shards, spec section 4) by drawing glyphs or by importing
// common file formats, and describes data sets.
#include <fmt/format.h>

#include <memory>

#include "data/error.h"
#include "data/import/import.h"
#include "data/inspect.h"
#include "data/pictures/glyphs.h"
#include "launch/collective.h"
#include "launch/config.h"
#include "launch/verbs/verbs.h"
#include "monitoring/telemetry/progress.h"

namespace laterna::launch {
namespace {

/// Shows the number of images done as a progress line.
class Shown {
 public:
  data::Progress callback() {
    return [this](std::int64_t done, std::int64_t total) {
      if (!progress_) progress_ = std::make_unique<monitoring::Progress>("image", total);
      progress_->update(done, "");
      if (done == total) progress_->finish();
    };
  }

 private:
  std::unique_ptr<monitoring::Progress> progress_;
};

void say_made(const std::string& folder) {
  const auto set = data::ImageSet::open(folder);
  fmt::print("{}: {} images of {}x{}x{} in {} shard(s); `laterna data inspect {}` describes it\n",
             folder, set.count(), set.channels(), set.height(), set.width(), set.shards().size(),
             folder);
}

void add_make(CLI::App& data, Action& action) {
  struct Request {
    std::string kind, output;
    data::GlyphOptions options;
  };
  const auto request = std::make_shared<Request>();
  auto* verb = data.add_subcommand("make", "Draw the built-in data set of digits");
  verb->add_option("kind", request->kind, "glyphs (the only kind)")
      ->required()
      ->check(CLI::IsMember({"glyphs"}));
  verb->add_option("--output", request->output, "A new or empty folder")->required();
  verb->add_option("--size", request->options.size, "Side of an image in pixels: even, at least 8")
      ->capture_default_str();
  verb->add_option("--count", request->options.count, "Number of images")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  verb->add_option("--seed", request->options.seed, "Random seed")->capture_default_str();
  verb->add_option("--split", request->options.split, "Name of the split")->capture_default_str();
  verb->add_flag("--colour", request->options.colour, "Coloured digits on a coloured background");
  verb->callback([&action, request] {
    action.run = [request](dist::World& world) {
      require_single_process(world, "data");
      const auto& o = request->options;
      if (o.size < 8 || o.size % 2 != 0) {
        throw UsageError(fmt::format("--size {} is invalid; allowed: even, at least 8", o.size));
      }
      Shown shown;
      data::make_glyphs(o, request->output, shown.callback());
      say_made(request->output);
      return 0;
    };
  });
}

void add_import(CLI::App& data, Action& action) {
  struct Request {
    std::string kind;
    data::ImportOptions options;
  };
  const auto request = std::make_shared<Request>();
  auto* verb = data.add_subcommand("import", "Import images from a common format");
  std::vector<std::string> kinds;
  for (const auto& importer : data::kImporters) kinds.emplace_back(importer.name);
  verb->add_option("kind", request->kind, "The format; cifar10: the binary version")
      ->required()
      ->check(CLI::IsMember(kinds));
  auto& o = request->options;
  verb->add_option("source", o.source, "The folder that holds the files")->required();
  verb->add_option("--output", o.output, "A new or empty folder")->required();
  verb->add_option("--split", o.split, "train or test; for folder, celeba and lsun any name")
      ->capture_default_str();
  verb->add_option("--name", o.name, "Name of the data set");
  verb->add_option("--size", o.size,
                   "Side to resize to, in pixels (0: 64 for celeba and lsun, otherwise unchanged)")
      ->check(CLI::Range(0, 4096));
  verb->add_option("--crop", o.crop,
                   "folder, celeba: side of the centre square to crop before resizing")
      ->check(CLI::Range(0, 65536));
  verb->add_option("--channels", o.channels, "folder: 1 grey, 3 colour (0: as in the first image)")
      ->check(CLI::IsMember({0, 1, 3}));
  verb->add_option("--limit", o.limit, "Maximum number of images (0: all)")
      ->check(CLI::NonNegativeNumber);
  verb->callback([&action, request] {
    action.run = [request](dist::World& world) {
      require_single_process(world, "data");
      Shown shown;
      for (const auto& importer : data::kImporters) {
        if (importer.name == request->kind) importer.run(request->options, shown.callback());
      }
      say_made(request->options.output.string());
      return 0;
    };
  });
}

void add_describe(CLI::App& data, Action& action) {
  struct Request {
    std::string folder, picture;
  };
  const auto request = std::make_shared<Request>();
  auto* verb = data.add_subcommand("inspect", "Describe a data set and verify its checksums");
  verb->add_option("folder", request->folder, "The data set's folder")->required();
  verb->add_option("--picture", request->picture,
                   "Also write a sample of the images to this PNG file");
  verb->callback([&action, request] {
    action.run = [request](dist::World& world) {
      require_single_process(world, "data");
      const auto set = data::ImageSet::open(request->folder);
      const auto description = data::describe(set);
      fmt::print("{}\n", description.text);
      if (!request->picture.empty()) data::write_sample_picture(set, request->picture);
      if (description.damaged.empty()) return 0;
      throw data::InputError(
          fmt::format("{}: the pixels do not match the recorded SHA-256; import the data again",
                      description.damaged.front()));
    };
  });
}

}  // namespace

void add_data(CLI::App& app, Action& action) {
  auto* data = app.add_subcommand("data", "Make, import and inspect data sets");
  data->require_subcommand(1);
  add_make(*data, action);
  add_import(*data, action);
  add_describe(*data, action);
}

}  // namespace laterna::launch
