// `laterna export`: writes the weights of a checkpoint to one file that any program can read.
#include <memory>

#include "launch/checkpoint/checkpoint.h"
#include "launch/checkpoint/tensor_file.h"
#include "launch/collective.h"
#include "launch/verbs/verbs.h"

namespace laterna::launch {

void add_export(CLI::App& app, Action& action) {
  struct Request {
    RunWeights weights;
    std::string output;
  };
  const auto request = std::make_shared<Request>();
  auto* verb = app.add_subcommand("export", "Write a checkpoint's weights to one HDF5 file");
  add_weights_options(*verb, request->weights);
  verb->add_option("--output", request->output, "The file to write, such as model.h5")->required();
  verb->callback([&action, request] {
    action.run = [request](dist::World& world) {
      require_single_process(world, "export");
      const auto loaded = load_weights(request->weights, at::kFloat);
      write_model(request->output, loaded.config, loaded.parameters.specs(),
                  loaded.parameters.values());
      fmt::print("{}: {} parameters, {} weights of step {}\n", request->output,
                 model::count_of(loaded.parameters.specs()),
                 request->weights.raw ? "raw" : "averaged", loaded.step);
      return 0;
    };
  });
}

}  // namespace laterna::launch
