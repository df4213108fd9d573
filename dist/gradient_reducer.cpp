#include "dist/gradient_reducer.h"

#include <fmt/format.h>
#include <torch/csrc/autograd/function.h>
#include <torch/csrc/autograd/function_hook.h>

#include <chrono>
#include <stdexcept>

#include "data/host.h"

namespace laterna::dist {
namespace {

std::int64_t offset_in(const at::Tensor& flat, const at::Tensor& gradient) {
  return gradient.storage_offset() - flat.storage_offset();
}

// True when writing `gradient` writes `flat`.
bool is_view_of(const at::Tensor& gradient, const at::Tensor& flat) {
  return gradient.defined() && gradient.is_contiguous() &&
         gradient.scalar_type() == flat.scalar_type() && gradient.is_alias_of(flat) &&
         offset_in(flat, gradient) >= 0 &&
         offset_in(flat, gradient) + gradient.numel() <= flat.numel();
}

}  // namespace

// Runs after autograd has added a gradient to its parameter's .grad.
class GradientReducer::Hook final : public torch::autograd::FunctionPostHook {
 public:
  Hook(GradientReducer& reducer, std::size_t parameter)
      : reducer_(reducer), parameter_(parameter) {}

  torch::autograd::variable_list operator()(
      const torch::autograd::variable_list& outputs,
      const torch::autograd::variable_list& /*gradients*/) override {
    reducer_.on_gradient(parameter_);
    return outputs;
  }

 private:
  GradientReducer& reducer_;
  std::size_t parameter_;
};

// A parameter refers to its AccumulateGrad node only weakly; without the node the hook is lost too.
struct GradientReducer::Accumulator {
  std::shared_ptr<torch::autograd::Node> node;
  std::uintptr_t hook = 0;
};

GradientReducer::GradientReducer(Communicator& reduction, std::vector<at::Tensor> parameters,
                                 at::Tensor flat_gradient, std::int64_t bucket_bytes)
    : reduction_(reduction),
      parameters_(std::move(parameters)),
      flat_gradient_(std::move(flat_gradient)) {
  const at::ScalarType type = flat_gradient_.scalar_type();
  if (flat_gradient_.dim() != 1 || !flat_gradient_.is_contiguous() ||
      (type != at::kFloat && type != at::kDouble)) {
    throw std::invalid_argument(
        "GradientReducer: the flat gradient must be contiguous, one-dimensional, and float32 or "
        "float64");
  }
  if (bucket_bytes <= 0) {
    throw std::invalid_argument(fmt::format(
        "GradientReducer: buckets of {} bytes: the size must be positive", bucket_bytes));
  }
  find_offsets();
  if (reduction_.size() == 1) return;  // this rank's gradients are the sum
  make_buckets(bucket_bytes);
  install_hooks();
}

GradientReducer::~GradientReducer() {
  for (const Accumulator& accumulator : accumulators_) {
    accumulator.node->del_post_hook(accumulator.hook);
  }
}

void GradientReducer::find_offsets() {
  std::int64_t end = 0;
  for (std::size_t i = 0; i < parameters_.size(); ++i) {
    const at::Tensor& parameter = parameters_[i];
    if (!parameter.is_leaf() || !parameter.requires_grad()) {
      throw std::invalid_argument(
          fmt::format("GradientReducer: parameter {} is not a leaf that requires a gradient", i));
    }
    if (!is_view_of(parameter.grad(), flat_gradient_)) {
      throw std::invalid_argument(fmt::format(
          "GradientReducer: the gradient of parameter {} is not a view of the flat buffer", i));
    }
    offsets_.push_back(offset_in(flat_gradient_, parameter.grad()));
    if (offsets_.back() < end) {
      throw std::invalid_argument(
          fmt::format("GradientReducer: parameter {} begins at element {} of the flat buffer, "
                      "before the end {} of the previous one",
                      i, offsets_.back(), end));
    }
    end = offsets_.back() + parameter.numel();
  }
}

void GradientReducer::make_buckets(std::int64_t bucket_bytes) {
  const std::int64_t target = bucket_bytes / flat_gradient_.element_size();
  bucket_of_.resize(parameters_.size());
  std::int64_t end = flat_gradient_.numel();
  std::int64_t count = 0;
  for (std::size_t i = parameters_.size(); i-- > 0;) {
    bucket_of_[i] = buckets_.size();
    ++count;
    // The last bucket includes the buffer's beginning; gaps between parameters are summed too.
    const std::int64_t begin = i == 0 ? 0 : offsets_[i];
    if (i > 0 && end - begin < target) continue;
    buckets_.push_back({flat_gradient_.slice(0, begin, end), count, count});
    end = begin;
    count = 0;
  }
}

void GradientReducer::install_hooks() {
  for (std::size_t i = 0; i < parameters_.size(); ++i) {
    auto node = torch::autograd::impl::grad_accumulator(parameters_[i]);
    const std::uintptr_t hook = node->add_post_hook(std::make_unique<Hook>(*this, i));
    accumulators_.push_back({std::move(node), hook});
  }
}

void GradientReducer::arm() {
  if (armed_) throw std::logic_error("GradientReducer: arm() called twice without finish()");
  for (std::size_t i = 0; i < parameters_.size(); ++i) {
    const at::Tensor& gradient = parameters_[i].grad();
    if (!is_view_of(gradient, flat_gradient_) ||
        offset_in(flat_gradient_, gradient) != offsets_[i]) {
      throw std::logic_error(fmt::format(
          "GradientReducer: the gradient of parameter {} is no longer its view of the flat buffer: "
          "zero the buffer instead of resetting gradients",
          i));
    }
  }
  for (Bucket& bucket : buckets_) bucket.missing = bucket.parameters;
  ready_.assign(parameters_.size(), false);
  next_bucket_ = 0;
  armed_ = true;
}

void GradientReducer::on_gradient(std::size_t parameter) {
  if (!armed_) return;
  if (ready_[parameter]) {
    throw std::logic_error(
        fmt::format("GradientReducer: a second backward after arm() reached parameter {}, whose "
                    "gradient may already have been sent: call arm() before the last backward "
                    "of a step",
                    parameter));
  }
  ready_[parameter] = true;
  --buckets_[bucket_of_[parameter]].missing;
  while (next_bucket_ < buckets_.size() && buckets_[next_bucket_].missing == 0) launch_next();
  poll();
}

void GradientReducer::launch_next() {
  under_way_.push_back(reduction_.all_reduce(buckets_[next_bucket_++].slice));
}

void GradientReducer::poll() {
  for (const auto& work : under_way_) work->test();
}

void GradientReducer::finish() {
  if (!armed_) throw std::logic_error("GradientReducer: finish() called without arm()");
  const auto start = std::chrono::steady_clock::now();
  report_ = {.buckets = std::ssize(buckets_),
             .buckets_in_backward = static_cast<std::int64_t>(next_bucket_)};
  while (next_bucket_ < buckets_.size()) launch_next();
  for (; !under_way_.empty(); under_way_.pop_front()) under_way_.front()->wait();
  armed_ = false;
  if (!buckets_.empty()) report_.bytes = static_cast<std::int64_t>(flat_gradient_.nbytes());
  report_.exposed_seconds = data::seconds_since(start);
}

}  // namespace laterna::dist
