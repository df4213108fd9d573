#include "monitoring/quality/torchscript.h"

#include <ATen/ATen.h>
#include <fmt/format.h>
#include <fmt/ranges.h>
#include <torch/csrc/jit/api/module.h>
#include <torch/csrc/jit/runtime/graph_executor.h>
#include <torch/csrc/jit/serialization/import.h>

#include "data/error.h"

namespace laterna::monitoring {
namespace {

constexpr const char* kReturnFeatures = "return_features";

/// Returns the line of LibTorch's message that states the reason: for an error raised in the
/// network, the last line, after the TorchScript trace.
std::string reason_of(const std::exception& error) {
  const auto* torch = dynamic_cast<const c10::Error*>(&error);
  std::string text = torch ? torch->what_without_backtrace() : error.what();
  text.erase(text.find_last_not_of(" \n") + 1);
  const bool raised = text.find("Traceback of TorchScript") != std::string::npos;
  return raised ? text.substr(text.rfind('\n') + 1) : text.substr(0, text.find('\n'));
}

torch::jit::Module load(const std::filesystem::path& path) {
  try {
    auto module = torch::jit::load(path.string(), at::kCPU);
    module.eval();
    return module;
  } catch (const std::exception& error) {
    throw data::InputError(
        fmt::format("{}: is not a TorchScript file, or is damaged ({}); give a file written by "
                    "torch.jit.save, or an .h5 file written by `laterna features train`",
                    path.string(), reason_of(error)));
  }
}

/// Checks what the network returned for `count` images; returns the features, float32 [count,d].
at::Tensor checked(const c10::IValue& answer, std::int64_t count, const std::string& path) {
  const std::string wanted = fmt::format(
      "it must return one floating-point tensor of {} x d (or {} x d x 1 x 1) for {} images; "
      "export a network that does",
      count, count, count);
  if (!answer.isTensor()) {
    throw data::InputError(
        fmt::format("{}: forward returns a {}; {}", path, answer.tagKind(), wanted));
  }
  const at::Tensor& features = answer.toTensor();
  const auto shape = features.sizes();
  const bool flat = shape.size() == 2 || (shape.size() == 4 && shape[2] == 1 && shape[3] == 1);
  if (!flat || shape[0] != count || shape[1] == 0 || !features.is_floating_point()) {
    throw data::InputError(fmt::format("{}: forward returns {} [{}]; {}", path,
                                       c10::toString(features.scalar_type()), fmt::join(shape, ","),
                                       wanted));
  }
  return features.reshape({count, shape[1]}).to(at::kFloat);
}

/// Input format that the network accepts.
struct Form {
  at::ScalarType dtype;
  bool repeat;  // repeat grey images to three channels
};

class TorchScript final : public FeatureExtractor {
 public:
  TorchScript(const std::filesystem::path& path, const ImageShape& shape)
      : FeatureExtractor(path, shape), module_(load(path)) {
    const auto method = module_.find_method("forward");
    if (!method) {
      throw data::InputError(path.string() +
                             ": has no forward method; give a network saved by torch.jit.save");
    }
    for (const auto& argument : method->function().getSchema().arguments()) {
      by_flag_ = by_flag_ || argument.name() == kReturnFeatures;
    }
    try_one_image();
  }

 private:
  void try_one_image() {
    const at::NoGradGuard no_grad;
    const at::Tensor image =
        at::zeros({1, shape().channels, shape().height, shape().width}, at::kByte);
    std::string refusal;
    for (const bool repeat : {false, true}) {
      if (repeat && shape().channels != 1) continue;
      for (const auto dtype : {at::kFloat, at::kByte}) {
        form_ = {dtype, repeat};
        c10::IValue answer;
        try {
          answer = call(image);
        } catch (const std::exception& error) {
          if (dtype == at::kFloat) refusal = reason_of(error);
          continue;
        }
        set_dimension(checked(answer, 1, path().string()).size(1));
        return;
      }
    }
    throw data::InputError(fmt::format(
        "{}: does not accept images of {}{} in 0..255 ({}); give a network for such images",
        path().string(), to_text(shape()),
        shape().channels == 1 ? ", nor repeated to three channels," : "", refusal));
  }

  c10::IValue call(const at::Tensor& pixels) const {
    // By default the interpreter optimises the network after its first calls, which changes bits.
    const torch::jit::GraphOptimizerEnabledGuard as_written(false);
    at::Tensor x = pixels.to(form_.dtype);
    if (form_.repeat) x = x.repeat({1, 3, 1, 1});
    const auto method = module_.get_method("forward");
    return by_flag_ ? method({x}, {{kReturnFeatures, true}}) : method({x});
  }

  at::Tensor features_of_chunk(const at::Tensor& pixels) const override {
    c10::IValue answer;
    try {
      answer = call(pixels);
    } catch (const std::exception& error) {
      throw data::InputError(fmt::format("{}: fails on a chunk of {} images ({})", path().string(),
                                         pixels.size(0), reason_of(error)));
    }
    const at::Tensor features = checked(answer, pixels.size(0), path().string());
    if (features.size(1) != dimension()) {
      throw data::InputError(
          fmt::format("{}: returns {} features for one image but {} each for {} images",
                      path().string(), dimension(), features.size(1), pixels.size(0)));
    }
    return features;
  }

  torch::jit::Module module_;
  bool by_flag_ = false;
  Form form_{};
};

}  // namespace

std::unique_ptr<FeatureExtractor> open_torchscript(const std::filesystem::path& path,
                                                   const ImageShape& shape) {
  return std::make_unique<TorchScript>(path, shape);
}

}  // namespace laterna::monitoring
