// The program `laterna VERB ...`: reads the command line, joins the MPI ranks, runs the verb, and
// turns a failure into one message and an exit status (spec section 3): 0 done, 2 bad usage or
// configuration, 3 bad input data, 75 stopped on request, 1 any other failure.
#include <fmt/format.h>
#include <fmt/ranges.h>
#include <malloc.h>
#include <sys/resource.h>

#include <cstdio>

#include "launch/collective.h"
#include "launch/config.h"
#include "launch/signals.h"
#include "launch/threads.h"
#include "launch/verbs/verbs.h"
#include "launch/version.h"

namespace laterna::launch {
namespace {

int run(const Action& action) {
  take_signals(action.on_signal);
  dist::World world;
  share_cores(world);
  try {
    const int status = action.run(world);
    world.finalize();
    return status;
  } catch (const CollectiveError& error) {
    if (world.rank() == 0) fmt::print(stderr, "laterna: {}\n", error.what());
    world.finalize();
    return error.status;
  } catch (const std::exception& error) {
    const std::string who = world.size() > 1 ? fmt::format("rank {}: ", world.rank()) : "";
    fmt::print(stderr, "laterna: {}{}\n", who, message_of(error));
    if (world.size() > 1) world.abort(status_of(error));
    return status_of(error);
  }
}

/// Throws UsageError when a word of the command line stands where a verb must, but is none.
void check_verbs(const CLI::App& app, int argc, char** argv) {
  const CLI::App* at = &app;
  for (int i = 1; i < argc && argv[i][0] != '-'; ++i) {
    std::vector<std::string> verbs;
    const CLI::App* found = nullptr;
    for (const auto* verb : at->get_subcommands([](const CLI::App*) { return true; })) {
      verbs.push_back(verb->get_name());
      if (verb->get_name() == argv[i]) found = verb;
    }
    if (verbs.empty()) return;
    if (!found) {
      throw UsageError(
          fmt::format("unknown verb {}; allowed: {}", argv[i], fmt::join(verbs, ", ")));
    }
    at = found;
  }
}

int parse_and_run(int argc, char** argv) {
  CLI::App app{
      "Laterna trains spiking diffusion models with adaptive lateral selection, on one machine or "
      "many."};
  app.name("laterna");
  app.require_subcommand(1);
  app.set_version_flag("--version", all_versions);
  Action action;
  for (const auto add : {add_data, add_config, add_train, add_stop, add_sample, add_denoise,
                         add_export, add_inspect, add_evaluate, add_features, add_bench}) {
    add(app, action);
  }
  try {
    check_verbs(app, argc, argv);
    app.parse(argc, argv);
  } catch (const CLI::Success& help) {
    return app.exit(help);
  } catch (const UsageError& error) {
    fmt::print(stderr, "laterna: {}\n", error.what());
    return 2;
  } catch (const CLI::ParseError& error) {
    fmt::print(
        stderr,
        "laterna: {}\n  laterna --help lists the verbs, laterna VERB --help the flags of a verb\n",
        error.what());
    return 2;
  }
  return run(action);
}

}  // namespace
}  // namespace laterna::launch

int main(int argc, char** argv) {
  laterna::launch::block_signals();
  rlimit files{};
  if (getrlimit(RLIMIT_NOFILE, &files) == 0) {  // a data set keeps its shards open
    files.rlim_cur = files.rlim_max;
    setrlimit(RLIMIT_NOFILE, &files);
  }
  // Every step frees and allocates the same activations: keep their memory in the heap, so that the
  // kernel need not map and clear the pages again each time (12% of a training step's time).
  mallopt(M_MMAP_THRESHOLD, 32 << 20);  // the largest that glibc accepts
  mallopt(M_TRIM_THRESHOLD, 1 << 30);
  mallopt(M_TOP_PAD, 64 << 20);
  try {
    return laterna::launch::parse_and_run(argc, argv);
  } catch (const std::exception& error) {
    fmt::print(stderr, "laterna: {}\n", error.what());
    return 1;
  }
}
