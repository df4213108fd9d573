// `laterna bench kernels`: the speed of the kernels that read spikes, compared with dense
// arithmetic and with the limits of the machine, over spike densities, at the layer sizes of a
// configuration.
#include "model/kernels/cpu/kernels.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <fmt/format.h>
#include <torch/csrc/autograd/autograd.h>

#include <functional>
#include <limits>
#include <nlohmann/json.hpp>

#include "launch/bench/bench.h"
#include "model/attention.h"
#include "model/candidates.h"
#include "model/spiking/dense_product.h"
#include "model/spiking/norm_lif.h"
#include "model/spiking/spike_product.h"

namespace laterna::launch {
namespace {

using model::Spikes;

constexpr double kDensities[] = {0, 0.01, 0.03, 0.05, 0.1, 0.2, 0.3, 0.5, 1};

/// The measured limits of the machine, for this process.
struct Machine {
  double multiply_adds;  // per second, of dense float32 products in the faster library
  double bytes;          // per second, read and written by a memory copy
};

/// The work of a kernel: its additions, and the bytes that it must read or write once.
struct Work {
  double additions, bytes;
  /// Returns a lower bound on the time, in which an addition costs as much as a multiply-add.
  double seconds_at_least(const Machine& machine) const {
    return std::max(additions / machine.multiply_adds, bytes / machine.bytes);
  }
};

Machine measure_machine(double seconds) {
  const std::int64_t bytes = 256 << 20;
  const at::Tensor from = at::zeros({bytes}, at::kByte);
  at::Tensor to = at::empty_like(from);
  const double copy = median(time_runs(seconds, [&] { to.copy_(from); }));
  return {dense_rate(at::kCPU, seconds) / 2, 2.0 * double(bytes) / copy};
}

Spikes random_spikes(std::int64_t rows, std::int64_t width, double density,
                     std::int64_t groups = 1) {
  return Spikes::of(at::rand({rows, groups * width}).lt(density).to(at::kFloat), groups);
}

class Table {
 public:
  Table(const Machine& machine, double seconds) : machine_(machine), seconds_(seconds) {
    fmt::print("{:<34}{:>8}{:>12}{:>12}{:>8}{:>12}{:>10}\n", "kernel", "density", "time", "dense",
               "ratio", "GFLOP/s", "of bound");
  }
  /// Measures `kernel` and prints a row. `dense`: ways to compute the same with dense arithmetic,
  /// of which the fastest counts; `flops`: the operations of these, two per multiply-add.
  void add(const std::string& name, double density, const Work& work, double flops,
           const std::function<void()>& kernel, const std::vector<std::function<void()>>& dense) {
    const double ours = median(time_runs(seconds_, kernel));
    double theirs = std::numeric_limits<double>::infinity();
    for (const auto& way : dense) theirs = std::min(theirs, median(time_runs(seconds_, way)));
    const double share = work.seconds_at_least(machine_) / ours;
    fmt::print("{:<34}{:>7.0f}%{:>9.3f} ms{:>9.3f} ms{:>8.2f}{:>12.0f}{:>9.0f}%\n", name,
               100 * density, 1e3 * ours, 1e3 * theirs, theirs / ours, flops / ours / 1e9,
               100 * share);
    std::fflush(stdout);
    rows_.push_back({{"kernel", name},
                     {"density", density},
                     {"seconds", ours},
                     {"dense_seconds", theirs},
                     {"ratio", theirs / ours},
                     {"effective_gflops", flops / ours / 1e9},
                     {"share_of_bound", share}});
  }
  const nlohmann::json& rows() const { return rows_; }

 private:
  Machine machine_;
  double seconds_;
  nlohmann::json rows_ = nlohmann::json::array();
};

/// Measures a linear layer in -> out on `rows` rows: the forward product and the weight gradient.
void add_products(Table& table, const std::string& name, std::int64_t rows, std::int64_t in,
                  std::int64_t out) {
  const at::Tensor weight = at::randn({out, in}), bias = at::randn({out});
  const at::Tensor grad = at::randn({rows, out}), turned = grad.t().contiguous();
  at::Tensor result = at::empty({rows, out}), library = at::empty({rows, out}),
             gradient = at::empty({out, in});
  const std::string size = fmt::format(" {}x{}", in, out);
  for (const double density : kDensities) {
    const Spikes spikes = random_spikes(rows, in, density);
    const at::Tensor values = spikes.values();
    const double fired = values.sum(at::kDouble).item<double>();
    const Work work{fired * double(out),
                    double(rows * in) / 8 + 4 * double(in * out) + 4 * double(rows * out)};
    const double flops = 2 * double(rows) * double(in) * double(out);
    table.add(
        name + size, density, work, flops,
        [&] { model::spike_product(spikes, weight, bias, result, model::crossover(at::kFloat)); },
        {[&] { at::mm_out(library, values, weight.t()); },
         [&] { model::dense_product(values, weight.t()); }});
    table.add(name + size + " gradient", density, work, flops,
              [&] { model::spike_weight_gradient(spikes, grad, model::crossover(at::kFloat)); },
              {[&] { at::mm_out(gradient, grad.t(), values); },
               [&] { model::dense_product(turned, values); }});
  }
}

std::function<void()> without_gradients(const std::function<void()>& run) {
  return [run] {
    const at::NoGradGuard no_grad;
    run();
  };
}

/// Returns a function that computes the gradient of `input`, given the gradient `grad` of `output`;
/// it can be called any number of times.
std::function<void()> backward_of(const at::Tensor& output, const at::Tensor& input,
                                  const at::Tensor& grad) {
  return [=] { torch::autograd::grad({output}, {input}, {grad}, /*retain_graph=*/true); };
}

/// Measures q (k^T v) with its neurons, forward and backward, against tensor operations.
void add_attention(Table& table, const model::ModelConfig& m, std::int64_t batch) {
  const std::int64_t rows = m.spiking_steps * batch * m.tokens(), depth = m.width / m.heads;
  const auto surrogate = model::surrogate_from(m.surrogate);
  const std::vector<std::int64_t> shape{m.spiking_steps, batch, m.tokens(), 3 * m.width};
  const at::Tensor grad = at::randn({rows, m.width});
  for (const double density : kDensities) {
    const Spikes qkv = random_spikes(rows, m.width, density, 3).leaf();
    const at::Tensor values = qkv.values().detach().requires_grad_();
    const auto fused = [&] {
      return model::spike_attention(qkv, m.spiking_steps, m.tokens(), m.heads, surrogate);
    };
    const auto plain = [&] {
      return model::spike_attention_reference(values.view(shape), m.heads, surrogate);
    };
    const double entries = double(rows * m.width), fired = density * entries;
    const double product = double(2 * std::min(depth, m.tokens()));
    const double bytes = entries / 8 * 4;
    table.add("attention", density, {fired * double(depth) * (density + 1), bytes},
              2 * entries * product, without_gradients(fused), {without_gradients(plain)});
    // Counts (k^T v) and currents are computed again; then the gradient of q densely, those of the
    // counts, k and v as sums of rows selected by spikes.
    const double additions = fired * double(depth) * (density + 4) + entries * double(depth);
    table.add("attention, backward", density, {additions, bytes + 4 * 4 * entries},
              4 * entries * product, backward_of(fused().proxy, qkv.proxy, grad),
              {backward_of(plain(), values, grad.view({shape[0], shape[1], shape[2], m.width}))});
  }
}

/// Measures norm, neurons and packing in one pass, forward and backward, against tensor operations.
void add_norm(Table& table, const model::ModelConfig& m, std::int64_t batch) {
  const at::Tensor x = at::randn({m.spiking_steps, batch, m.tokens(), m.width}).requires_grad_();
  const auto sequences = model::Sequences::dense(m.spiking_steps, batch, m.tokens());
  const model::Norms norms{{at::ones({m.width})}, {at::zeros({m.width})}, 1};
  const auto fused = [&] { return model::norm_lif(x, norms, sequences, {}); };
  const auto plain = [&] { return model::norm_lif_reference(x, norms, sequences, {}); };
  const double rate = fused().values().mean().item<double>(), elements = double(x.numel());
  // Mean, deviation, normalising and the neuron take about 12 operations per element (two per
  // multiply-add); the backward pass, with the surrogate's exponential, about 36.
  table.add("norm, neurons, packing", rate, {6 * elements, 4.125 * elements}, 12 * elements,
            without_gradients(fused), {without_gradients(plain)});
  const at::Tensor grad = at::randn(x.sizes());
  table.add("norm, neurons, backward", rate, {18 * elements, 12.125 * elements}, 36 * elements,
            backward_of(fused().proxy, x, grad.view({-1, m.width})),
            {backward_of(plain(), x, grad)});
}

/// Measures the weighted sum over assignments, with k of N candidates per token block.
void add_combine(Table& table, const model::ModelConfig& m, std::int64_t batch) {
  const std::int64_t blocks = m.spiking_steps * batch, size = m.tokens() * m.width;
  const at::Tensor mask = at::zeros({m.spiking_steps, batch, m.candidates}, at::kByte);
  mask.narrow(2, 0, m.selected).fill_(1);
  const auto assignments = model::Assignments::of(mask, m.tokens());
  const at::Tensor outputs = at::randn({blocks * m.selected, size}),
                   gate = at::rand({blocks, m.candidates});
  const double elements = double(outputs.numel());
  table.add("assignments, weighted sum", 1, {elements, 4 * (elements + double(blocks * size))},
            2 * elements, [&] { model::combine(outputs, gate, assignments); },
            {[&] { model::combine_reference(outputs, gate, assignments); }});
}

}  // namespace

int bench_kernels(const Config& config, double seconds) {
  const auto& m = config.model;
  const std::int64_t batch = config.training.batch, rows = m.spiking_steps * batch * m.tokens();
  const double each = seconds / 100;  // there are about 100 measurements
  const Machine machine = measure_machine(10 * each);
  const auto& measured = model::crossover(at::kFloat);
  fmt::print(
      "{} kernels, {} threads, {} rows of spikes; dense products {:.0f} GFLOP/s, memory {:.1f} "
      "GB/s\nspikes are multiplied densely above a density of {:.0f}%, in the weight gradient "
      "above {:.0f}% (just measured; over 100%: never)\n",
      kernels::kernels<float>().instruction_set, at::get_num_threads(), rows,
      2e-9 * machine.multiply_adds, 1e-9 * machine.bytes, 100 * measured.product,
      100 * measured.weight_gradient);
  Table table(machine, each);
  add_products(table, "qkv", rows, m.width, 3 * m.width);
  add_products(table, "project", rows, m.width, m.width);
  add_products(table, "up", rows, m.width, m.hidden());
  add_products(table, "down", rows, m.hidden(), m.width);
  add_attention(table, m, batch);
  add_norm(table, m, batch);
  add_combine(table, m, batch);
  const nlohmann::json line = {{"benchmark", "kernels"},
                               {"kernels", kernels::kernels<float>().instruction_set},
                               {"threads", at::get_num_threads()},
                               {"rows", rows},
                               {"dense_gflops", 2e-9 * machine.multiply_adds},
                               {"memory_gigabytes_per_second", 1e-9 * machine.bytes},
                               {"crossover", measured.product},
                               {"crossover_weight_gradient", measured.weight_gradient},
                               {"measurements", table.rows()}};
  fmt::print("{}\n", line.dump());
  return 0;
}

}  // namespace laterna::launch
