#include "launch/bench/kernel_table.h"

#include <fmt/format.h>

#include <type_traits>

#include "launch/bench/kernel_trials.h"
#include "model/spiking/neuron.h"

namespace laterna::launch {

std::string KernelShape::describe() const {
  return fmt::format(
      "T {} B {} M {} D {} columns {} heads {} groups {} parameter_groups {} N {} k {} density {} "
      "threshold {} surrogate {} paths {} delta {} shift {} lateral {} crossover {} {}",
      steps, batch, tokens, width, columns, heads, groups, parameter_groups, candidates, selected,
      density, threshold, static_cast<int>(surrogate), static_cast<int>(paths), delta, shift,
      lateral, crossover.product, crossover.weight_gradient);
}

namespace {

using Shapes = std::vector<KernelShape>;

/// Returns every shape with every one of `values` in `field`.
template <typename Value>
Shapes with(const Shapes& shapes, Value KernelShape::*field,
            const std::vector<std::type_identity_t<Value>>& values) {
  Shapes all;
  for (KernelShape shape : shapes) {
    for (const Value value : values) {
      shape.*field = value;
      all.push_back(shape);
    }
  }
  return all;
}

Shapes joined(Shapes first, const Shapes& second) {
  first.insert(first.end(), second.begin(), second.end());
  return first;
}

// --- Sizes of the tests ---

Shapes with_steps(const Shapes& shapes) {
  return with(shapes, &KernelShape::steps, {1, 2, 3, 4, 5, 6, 7, 8});
}

Shapes with_surrogates(const Shapes& shapes) {
  return with(shapes, &KernelShape::surrogate,
              {kernels::Surrogate::kSigmoid, kernels::Surrogate::kArctangent});
}

Shapes norm_tests() {
  const Shapes sizes{{.batch = 4, .tokens = 5, .width = 1},
                     {.batch = 4, .tokens = 1, .width = 33},
                     {.batch = 4, .tokens = 1, .width = 1, .groups = 3},
                     {.batch = 4, .tokens = 5, .width = 77, .groups = 3},
                     {.batch = 4, .tokens = 5, .width = 7, .groups = 2, .parameter_groups = 3},
                     {.batch = 4, .tokens = 1, .width = 64, .groups = 2, .parameter_groups = 3}};
  const Shapes any =
      with(with_steps(sizes), &KernelShape::paths, {Paths::kShuffled, Paths::kSilent});
  const Shapes many_fire{{.steps = 3,
                          .batch = 4,
                          .tokens = 5,
                          .width = 77,
                          .groups = 2,
                          .parameter_groups = 3,
                          .paths = Paths::kSilent}};
  // No neuron fires, few, many or all of them.
  const Shapes rates = with(many_fire, &KernelShape::threshold, {1e3, 4, 0.5, -1e3});
  const Shapes residual{{.batch = 3, .tokens = 5, .delta = true},
                        {.batch = 3, .tokens = 1, .shift = true},
                        {.batch = 3, .tokens = 5, .delta = true, .shift = true}};
  const Shapes sums = with_steps(with(residual, &KernelShape::width, {1, 7, 33}));
  return with_surrogates(joined(joined(any, rates), sums));
}

Shapes attention_tests() {
  const Shapes sizes{{.batch = 2, .tokens = 1, .width = 1, .heads = 1},
                     {.batch = 2, .tokens = 5, .width = 33, .heads = 1},
                     {.batch = 2, .tokens = 19, .width = 21, .heads = 3},
                     {.batch = 2, .tokens = 5, .width = 32, .heads = 2},
                     {.batch = 2, .tokens = 19, .width = 128, .heads = 2},
                     {.batch = 2, .tokens = 19, .width = 140, .heads = 2}};
  // More tokens than a byte can count.
  const Shapes long_ones{{.batch = 2, .tokens = 300, .width = 18, .heads = 2},
                         {.steps = 2, .batch = 2, .tokens = 511, .width = 64, .heads = 1}};
  const Shapes any = with(with_steps(sizes), &KernelShape::density, {0.05, 0.5});
  const Shapes extreme =
      with(with(sizes, &KernelShape::steps, {3}), &KernelShape::density, {0, 0.01, 1});
  const Shapes counts = with(long_ones, &KernelShape::density, {0.05, 0.5, 1});
  return with_surrogates(joined(joined(any, extreme), counts));
}

Shapes linear_tests() {
  const model::Crossover lists{2, 2}, dense{-1, -1}, mixed{0.3, 0.3};
  const Shapes rows{{.batch = 1}, {.batch = 23}};
  const Shapes inputs = with(rows, &KernelShape::width, {1, 7, 65, 200});
  const Shapes small = with(inputs, &KernelShape::columns, {1, 33, 64, 130, 300});
  // More rows and inputs than fit in one tile.
  const Shapes large{{.batch = 40, .width = 600, .columns = 130},
                     {.batch = 1100, .width = 530, .columns = 64},
                     {.batch = 2100, .width = 70, .columns = 200}};
  const Shapes any = joined(with(small, &KernelShape::crossover, {lists, dense}),
                            with(large, &KernelShape::crossover, {lists, dense, mixed}));
  return with(any, &KernelShape::density, {0, 0.01, 0.05, 0.3, 1});
}

Shapes packing_tests() {
  const Shapes rows{{.batch = 1}, {.batch = 5}, {.batch = 5, .groups = 3}};
  const Shapes sizes = with(rows, &KernelShape::width, {1, 7, 63, 64, 65, 130, 1000});
  return with(sizes, &KernelShape::density, {0, 0.3, 1});
}

Shapes assignment_tests() {
  const Shapes selections{{.tokens = 3, .candidates = 1, .selected = 1},
                          {.tokens = 3, .candidates = 3, .selected = 2},
                          {.tokens = 3, .candidates = 5, .selected = 1},
                          {.tokens = 3, .candidates = 5, .selected = 3}};
  const Shapes batches = with(with_steps(selections), &KernelShape::batch, {1, 4});
  const Shapes sizes = with(batches, &KernelShape::width, {1, 7, 33});
  return with(sizes, &KernelShape::paths, {Paths::kDense, Paths::kSilent});
}

Shapes routing_tests() {
  const Shapes selections{{.batch = 1, .width = 7, .candidates = 1, .selected = 1},
                          {.batch = 30, .width = 33, .candidates = 3, .selected = 2},
                          {.batch = 30, .width = 64, .candidates = 5, .selected = 3}};
  return with_surrogates(with(with_steps(selections), &KernelShape::lateral, {true, false}));
}

Shapes flat_tests() { return with({{}}, &KernelShape::width, {1, 31, 32, 33, 1000, 40000}); }

// --- Sizes of a model ---

KernelShape size_of(const model::ModelConfig& m, std::int64_t batch) {
  return {.steps = m.spiking_steps,
          .batch = batch,
          .tokens = m.tokens(),
          .width = m.width,
          .heads = m.heads,
          .candidates = m.candidates,
          .selected = m.selected,
          .surrogate = model::surrogate_from(m.surrogate),
          .lateral = m.lateral};
}

Shapes one_size(const model::ModelConfig& m, std::int64_t batch) { return {size_of(m, batch)}; }

Shapes with_densities(const Shapes& shapes) {
  return with(shapes, &KernelShape::density, {0, 0.01, 0.03, 0.05, 0.1, 0.2, 0.3, 0.5, 1});
}

Shapes attention_sizes(const model::ModelConfig& m, std::int64_t batch) {
  return with_densities({size_of(m, batch)});
}

Shapes linear_layers(const model::ModelConfig& m, std::int64_t batch) {
  Shapes layers;
  const auto add = [&](const char* name, std::int64_t in, std::int64_t out) {
    KernelShape s = size_of(m, batch);
    s.layer = fmt::format("{} {}x{}", name, in, out);
    s.width = in, s.columns = out;
    layers.push_back(s);
  };
  add("qkv", m.width, 3 * m.width);
  add("project", m.width, m.width);
  add("up", m.width, m.hidden());
  add("down", m.hidden(), m.width);
  return with_densities(layers);
}

Shapes norm_sizes(const model::ModelConfig& m, std::int64_t batch) {
  KernelShape residual = size_of(m, batch);
  residual.layer = "residual,";
  residual.delta = residual.shift = true;
  return {size_of(m, batch), residual};
}

/// The weights of a layer's candidates.
Shapes flat_sizes(const model::ModelConfig& m, std::int64_t) {
  return {{.width = 2 * m.candidates * m.width * m.hidden()}};
}

}  // namespace

const std::vector<Kernel>& kernel_table() {
  static const std::vector<Kernel> table{
      {"product", product, linear_tests(), linear_layers},
      {"weight gradient", weight_gradient, linear_tests(), linear_layers},
      {"attention", attention_forward, attention_tests(), attention_sizes},
      {"attention, backward", attention_backward, attention_tests(), attention_sizes},
      {"norm, neurons, packing", norm_lif_forward, norm_tests(), norm_sizes},
      {"norm, neurons, backward", norm_lif_backward, norm_tests(), norm_sizes},
      {"packing", pack, packing_tests(), one_size},
      {"unpacking", unpack, packing_tests(), one_size},
      {"assignments, weighted sum", combine_forward, assignment_tests(), one_size},
      {"assignments, weighted sum, backward", combine_backward, assignment_tests(), one_size},
      {"assignments, gather, backward", gather_backward, assignment_tests(), one_size},
      {"routing", routing_forward, routing_tests(), one_size},
      {"routing, backward", routing_backward, routing_tests(), one_size},
      {"AdamW", adamw, flat_tests(), flat_sizes},
      {"sum of squares", sum_of_squares, flat_tests(), flat_sizes}};
  return table;
}

}  // namespace laterna::launch
