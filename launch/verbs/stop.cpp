// `laterna stop`: asks a run to save and end, on whichever host it trains, through its run folder.
#include <fmt/format.h>

#include <memory>

#include "data/error.h"
#include "launch/collective.h"
#include "launch/training/stop_request.h"
#include "launch/verbs/verbs.h"

namespace laterna::launch {

void add_stop(CLI::App& app, Action& action) {
  const auto run = std::make_shared<std::string>();
  auto* verb = app.add_subcommand("stop", "Ask a running training to save and end (status 75)");
  verb->add_option("--run", *run, "The run folder")->required();
  verb->callback([&action, run] {
    action.run = [run](dist::World& world) {
      require_single_process(world, "stop");
      if (!std::filesystem::exists(std::filesystem::path(*run) / "config.toml")) {
        throw data::InputError(*run + ": is not a run folder (it has no config.toml)");
      }
      StopRequest::leave(*run);
      fmt::print("{}: asked to stop; the run saves and ends after its current micro-batch\n", *run);
      return 0;
    };
  });
}

}  // namespace laterna::launch
