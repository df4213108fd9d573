#include "model/parameters.h"

#include <ATen/ATen.h>
#include <fmt/format.h>

#include <algorithm>
#include <stdexcept>

namespace laterna::model {
namespace {

std::int64_t padded(std::int64_t size) {
  return (size + 15) / 16 * 16;  // 64 bytes in float32: no two views share a cache line
}

/// Collects specs in the order of first use.
class SpecList {
 public:
  void add(const std::string& name, std::vector<std::int64_t> shape) {
    std::int64_t size = 1;
    for (const auto extent : shape) size *= extent;
    const std::int64_t number = number_++;
    if (held_) specs_.push_back({name, std::move(shape), 0, size, number, candidate_});
  }
  /// Sets, for all parameters added after this call, whether they belong to a candidate of a
  /// selecting layer and whether this rank holds them.
  void begin(bool candidate, bool held) { candidate_ = candidate, held_ = held; }
  void linear(const std::string& name, std::int64_t out, std::int64_t in) {
    add(name + ".weight", {out, in});
    add(name + ".bias", {out});
  }
  void norm(const std::string& name, std::int64_t width) {
    add(name + ".weight", {width});
    add(name + ".bias", {width});
  }
  /// Returns the specs with their offsets; parameters that every rank holds come first.
  std::vector<ParameterSpec> take() {
    std::stable_partition(specs_.begin(), specs_.end(), [](const auto& s) { return !s.candidate; });
    std::int64_t offset = 0;
    for (auto& spec : specs_) {
      spec.offset = offset;
      offset += padded(spec.size);
    }
    return std::move(specs_);
  }

 private:
  std::vector<ParameterSpec> specs_;
  std::int64_t number_ = 0;
  bool candidate_ = false, held_ = true;
};

void add_block(SpecList& list, const ModelConfig& c, std::int64_t layer, const Holds& holds) {
  const std::string block = fmt::format("blocks.{}.", layer);
  const std::int64_t width = c.width, count = c.candidates;
  if (c.selects(layer)) {
    list.linear(block + "router.select", count, width);
    if (c.lateral) {
      list.add(block + "router.lateral.gamma", {});
      list.add(block + "router.lateral.aggregation", {count, count});
      list.add(block + "router.lateral.threshold", {});
    }
  }
  list.linear(block + "time", width, width);
  list.norm(block + "attention.norm", width);
  list.linear(block + "attention.qkv", 3 * width, width);
  for (const char* part : {"q", "k", "v"}) {
    list.norm(fmt::format("{}attention.norm_{}", block, part), width);
  }
  list.linear(block + "attention.project", width, width);
  list.norm(block + "candidates.norm", width);
  for (std::int64_t j = 0; j < c.candidates_of(layer); ++j) {
    const std::string candidate = fmt::format("{}candidates.{}.", block, j);
    const bool selects = c.selects(layer);
    list.begin(selects, !selects || holds(layer, j));
    list.linear(candidate + "up", c.hidden(), width);
    list.norm(candidate + "norm", c.hidden());
    list.linear(candidate + "down", width, c.hidden());
  }
  list.begin(false, true);
}

}  // namespace

std::vector<ParameterSpec> parameter_specs(const ModelConfig& c) {
  return parameter_specs(c, [](std::int64_t, std::int64_t) { return true; });
}

std::vector<ParameterSpec> parameter_specs(const ModelConfig& c, const dist::Placement& placement,
                                           std::int64_t rank) {
  return parameter_specs(c, [&](std::int64_t layer, std::int64_t candidate) {
    return placement.holds(rank, layer, candidate);
  });
}

std::vector<ParameterSpec> parameter_specs(const ModelConfig& c, const Holds& holds) {
  SpecList list;
  list.add("embed.weight", {c.width, c.channels, c.patch, c.patch});
  list.add("embed.bias", {c.width});
  list.add("position", {1, c.tokens(), c.width});
  list.add("time.weight", {c.diffusion_steps, c.width});
  for (std::int64_t layer = 0; layer < c.depth; ++layer) {
    add_block(list, c, layer, holds);
  }
  list.norm("norm", c.width);
  list.linear("head", c.patch_values(), c.width);
  return list.take();
}

std::int64_t count_of(const std::vector<ParameterSpec>& specs) {
  std::int64_t total = 0;
  for (const auto& spec : specs) total += spec.size;
  return total;
}

Parameters::Parameters(std::vector<ParameterSpec> specs, at::ScalarType dtype, bool trainable,
                       at::Device device)
    : specs_(std::move(specs)) {
  const auto& last = specs_.back();
  const auto options = at::TensorOptions().dtype(dtype).device(device);
  values_ = at::zeros({last.offset + padded(last.size)}, options);
  if (trainable) gradient_ = at::zeros_like(values_);
  for (const auto& spec : specs_) {
    index_[spec.name] = views_.size();
    // detach(): autograd must take the view for a leaf, not for a slice of values_.
    at::Tensor view = view_of(values_, spec).detach();
    if (trainable) {
      view.set_requires_grad(true);
      view.mutable_grad() = view_of(gradient_, spec);
    }
    views_.push_back(view);
  }
}

const at::Tensor& Parameters::operator[](const std::string& name) const {
  const auto found = index_.find(name);
  if (found == index_.end()) throw std::out_of_range("this model has no parameter " + name);
  return views_[found->second];
}

std::vector<std::int64_t> Parameters::candidates_of(std::int64_t layer) const {
  std::vector<std::int64_t> all;
  const std::string block = fmt::format("blocks.{}.candidates.", layer), part = ".up.weight";
  for (const auto& spec : specs_) {
    if (!spec.name.starts_with(block) || !spec.name.ends_with(part)) continue;
    all.push_back(std::stoll(spec.name.substr(block.size())));
  }
  return all;  // ascending, as in specs_
}

std::int64_t Parameters::shared_size() const {
  for (const auto& spec : specs_) {
    if (spec.candidate) return spec.offset;
  }
  return values_.numel();
}

at::Tensor Parameters::view_of(const at::Tensor& flat, const ParameterSpec& spec) {
  return flat.narrow(0, spec.offset, spec.size).view(spec.shape);
}

}  // namespace laterna::model
