// `laterna stop`: asks a run to save and end, on whichever host it trains, through its run folder,
// and says what it knows of the training there: none, starting, or under way.
#include <fmt/format.h>

#include <memory>

#include "data/error.h"
#include "data/files/folder_lock.h"
#include "dist/watchdog.h"
#include "launch/collective.h"
#include "launch/training/run_folder.h"
#include "launch/training/stop_request.h"
#include "launch/verbs/verbs.h"

namespace laterna::launch {
namespace {

/// Returns what the training in a folder will do with a request to stop. Its heartbeats are not
/// there before it has begun, as a start removes those of the one before.
std::string answer_of(const RunFolder& folder) {
  const auto rank = dist::Heartbeat::read(dist::heartbeat_file(folder.heartbeat_folder(), 0));
  if (!rank || rank->step == 0) return "it still starts, and ends before its first step";
  return fmt::format("it is at step {}, saves and ends after its current micro-batch", rank->step);
}

void ask_to_stop(const std::filesystem::path& run) {
  const RunFolder folder(run, false);
  if (const auto owner = data::FolderLock::holder(run)) {
    if (owner->id == 0) {
      throw std::runtime_error(run.string() +
                               ": locked by a process that does not say who it is; ask "
                               "again in a few seconds");
    }
    StopRequest::leave(run, owner->id);
    fmt::print("{}: asked the training to stop ({}): {}\n", run.string(), owner->describe(),
               answer_of(folder));
  } else if (const auto last = data::FolderLock::last_owner(run)) {
    StopRequest::leave(run, last->id);
    fmt::print(
        "{}: no training is running there that this host can see; the last one ({}) did not end by "
        "itself. If it runs on a host whose file locks are not seen here, it saves and ends now\n",
        run.string(), last->describe());
  } else {
    fmt::print("{}: no training is running there; there is nothing to stop\n", run.string());
  }
}

}  // namespace

void add_stop(CLI::App& app, Action& action) {
  const auto run = std::make_shared<std::string>();
  auto* verb = app.add_subcommand("stop", "Ask a running training to save and end (status 75)");
  verb->add_option("--run", *run, "The run folder")->required();
  verb->callback([&action, run] {
    action.run = [run](dist::World& world) {
      require_single_process(world, "stop");
      if (!RunFolder(*run, false).is_run()) {
        throw data::InputError(*run +
                               ": is not a run folder (it has neither lock nor config.toml)");
      }
      ask_to_stop(*run);
      return 0;
    };
  });
}

}  // namespace laterna::launch
