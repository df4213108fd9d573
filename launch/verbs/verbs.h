// The verbs of the command line (spec section 3), one source file each. add_<verb> declares the
// verb and its flags to CLI11; when the user gives the verb, parsing sets `action` to the function
// that does the work and returns the exit status.
#pragma once

#include <CLI/CLI.hpp>
#include <functional>

#include "dist/world.h"
#include "launch/signals.h"

namespace laterna::launch {

/// What a verb does.
struct Action {
  std::function<int(dist::World&)> run;
  OnSignal on_signal = OnSignal::end;
};

void add_data(CLI::App& app, Action& action);
void add_config(CLI::App& app, Action& action);
void add_train(CLI::App& app, Action& action);
void add_stop(CLI::App& app, Action& action);
void add_sample(CLI::App& app, Action& action);
void add_denoise(CLI::App& app, Action& action);
void add_export(CLI::App& app, Action& action);
void add_evaluate(CLI::App& app, Action& action);
void add_inspect(CLI::App& app, Action& action);
void add_features(CLI::App& app, Action& action);
void add_bench(CLI::App& app, Action& action);

}  // namespace laterna::launch
