// `laterna bench kernels`: the speed of every CPU kernel on every instruction set of the processor,
// compared with its reference and with the limits of the machine, at the sizes of a configuration's
// layers and, where it reads spikes, over their densities.
#include "model/kernels/cpu/kernels.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <fmt/format.h>

#include <algorithm>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "launch/bench/bench.h"
#include "launch/bench/kernel_table.h"
#include "model/kernels/cpu/instruction_sets.h"

namespace laterna::launch {
namespace {

/// The measured limits of the machine, for this process.
struct Machine {
  double multiply_adds;  // per second, of dense float32 products in the faster library
  double bytes;          // per second, read and written by a memory copy
  /// Returns a lower bound on a kernel's time, in which an addition costs as much as a
  /// multiply-add.
  double seconds_at_least(const KernelTrial& trial) const {
    return std::max(trial.additions / multiply_adds, trial.bytes / bytes);
  }
};

Machine measure_machine(double seconds) {
  const std::int64_t bytes = 256 << 20;
  const at::Tensor from = at::zeros({bytes}, at::kByte);
  at::Tensor to = at::empty_like(from);
  const double copy = median(time_runs(seconds, [&] { to.copy_(from); }));
  return {dense_rate(at::kCPU, seconds) / 2, 2.0 * double(bytes) / copy};
}

/// An instruction set of this processor.
struct InstructionSet {
  std::string name;
  model::Crossover crossover;
};

/// Finds the instruction sets that the processor has and prints them and those that it lacks.
std::vector<InstructionSet> measure_sets() {
  std::vector<InstructionSet> sets;
  for (const auto& name : kernels::instruction_sets()) {
    if (!kernels::use_instruction_set(name)) {
      fmt::print("{}: this processor lacks it\n", name);
      continue;
    }
    const auto& from = sets.emplace_back(name, model::measure_crossover(at::kFloat)).crossover;
    fmt::print(
        "{}: spikes are multiplied densely above a density of {:.0f}%, in the weight gradient "
        "above {:.0f}% (just measured; over 100%: never)\n",
        name, 100 * from.product, 100 * from.weight_gradient);
  }
  return sets;
}

class Table {
 public:
  Table(const Machine& machine, double seconds) : machine_(machine), seconds_(seconds) {
    fmt::print("{:<36}{:>8}{:>10}{:>12}{:>12}{:>8}{:>10}{:>10}\n", "kernel", "density", "set",
               "time", "reference", "ratio", "GFLOP/s", "of bound");
  }
  /// Measures a kernel in one size on each of `sets`, and prints a row for each.
  void add(const Kernel& kernel, KernelShape shape, const std::vector<InstructionSet>& sets) {
    const std::string name = shape.layer.empty() ? kernel.name : shape.layer + " " + kernel.name;
    double theirs = 0;
    for (const auto& set : sets) {
      kernels::use_instruction_set(set.name);
      shape.crossover = set.crossover;
      at::manual_seed(0);
      const KernelTrial trial = kernel.trial(shape, at::kFloat);
      if (theirs == 0) theirs = fastest(trial);
      const double ours = median(time_runs(seconds_, trial.kernel));
      const double share = machine_.seconds_at_least(trial) / ours, rate = trial.flops / ours / 1e9;
      fmt::print("{:<36}{:>7.0f}%{:>10}{:>9.3f} ms{:>9.3f} ms{:>8.2f}{:>10.0f}{:>9.0f}%\n", name,
                 100 * trial.density, set.name, 1e3 * ours, 1e3 * theirs, theirs / ours, rate,
                 100 * share);
      std::fflush(stdout);
      rows_.push_back({{"kernel", name},
                       {"set", set.name},
                       {"density", trial.density},
                       {"seconds", ours},
                       {"dense_seconds", theirs},
                       {"ratio", theirs / ours},
                       {"effective_gflops", rate},
                       {"share_of_bound", share}});
    }
  }
  const nlohmann::json& rows() const { return rows_; }

 private:
  /// Returns the seconds of the fastest way to compute the same without the kernel.
  double fastest(const KernelTrial& trial) const {
    double least = median(time_runs(seconds_, trial.reference));
    for (const auto& way : trial.rivals) least = std::min(least, median(time_runs(seconds_, way)));
    return least;
  }

  Machine machine_;
  double seconds_;
  nlohmann::json rows_ = nlohmann::json::array();
};

}  // namespace

int bench_kernels(const Config& config, double seconds) {
  const auto& m = config.model;
  const std::int64_t batch = config.training.batch, rows = m.spiking_steps * batch * m.tokens();
  const double each = seconds / 300;  // there are about 300 measurements
  const Machine machine = measure_machine(30 * each);
  fmt::print("{} threads, {} rows of spikes; dense products {:.0f} GFLOP/s, memory {:.1f} GB/s\n",
             at::get_num_threads(), rows, 2e-9 * machine.multiply_adds, 1e-9 * machine.bytes);
  const auto sets = measure_sets();
  Table table(machine, each);
  for (const auto& kernel : kernel_table()) {
    for (const auto& shape : kernel.model_shapes(m, batch)) table.add(kernel, shape, sets);
  }
  nlohmann::json line = {{"benchmark", "kernels"},
                         {"threads", at::get_num_threads()},
                         {"rows", rows},
                         {"dense_gflops", 2e-9 * machine.multiply_adds},
                         {"memory_gigabytes_per_second", 1e-9 * machine.bytes},
                         {"measurements", table.rows()}};
  for (const auto& [name, from] : sets) {
    line["sets"][name] = {{"crossover", from.product},
                          {"crossover_weight_gradient", from.weight_gradient}};
  }
  fmt::print("{}\n", line.dump());
  return 0;
}

}  // namespace laterna::launch
