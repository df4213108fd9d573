#include "launch/trainer.h"

#include <ATen/ATen.h>
#include <fmt/format.h>

#include <chrono>
#include <cmath>
#include <fstream>
#include <string>

#include "dist/replica_check.h"
#include "launch/together.h"

namespace laterna::launch {
namespace {

using Clock = std::chrono::steady_clock;

constexpr std::int64_t kReplicaCheckSteps = 500;  // between two comparisons of the ranks' weights

double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

at::ScalarType dtype_of(const Config& config) {
  return config.precision().float64 ? at::kDouble : at::kFloat;
}

/// MemAvailable of this host, in bytes.
std::int64_t free_memory() {
  std::ifstream file("/proc/meminfo");
  for (std::string key, unit; file >> key;) {
    std::int64_t kibibytes = 0;
    file >> kibibytes;
    std::getline(file, unit);
    if (key == "MemAvailable:") return kibibytes * 1024;
  }
  return std::int64_t{2} << 30;
}

}  // namespace

Share share_of(std::int64_t batch, int rank, int ranks) {
  const std::int64_t each = batch / ranks, more = batch % ranks;
  return {rank * each + std::min<std::int64_t>(rank, more), each + (rank < more ? 1 : 0)};
}

std::int64_t activation_bytes(const Config& config) {
  const auto& m = config.model;
  const std::int64_t unit =  // one [T, M, D] activation
      m.spiking_steps * m.tokens() * m.width * (config.precision().float64 ? 8 : 4);
  // A block keeps its two sums, s, z, q k v before and after their neurons, the attention's current
  // and spikes; and for each visit its input, the hidden layer before and after the neurons, and
  // the output. Backward adds the gradients of about one block.
  std::int64_t units = 0;
  for (std::int64_t layer = 0; layer < m.depth; ++layer) {
    const std::int64_t visits = m.selects(layer) ? m.selected : 1;
    units += 12 + visits * (2 + 2 * m.hidden_ratio);
  }
  return unit * (units + 12 + 2 * (2 + 2 * m.hidden_ratio));
}

std::int64_t choose_micro_batch(const Config& config, const dist::World& world) {
  const std::int64_t largest = share_of(config.training.batch, 0, world.size()).count;
  if (config.training.micro_batch > 0) return std::min(config.training.micro_batch, largest);
  const std::int64_t budget =
      std::min(free_memory() / (2 * world.local_size()), std::int64_t{3} << 30);
  const std::int64_t fitting = std::max<std::int64_t>(1, budget / activation_bytes(config));
  const std::int64_t rounds = (largest + fitting - 1) / fitting;
  return (largest + rounds - 1) / rounds;  // rounds of equal size
}

Trainer::Trainer(const Config& config, const data::ImageSet& images, dist::World& world)
    : config_(config),
      images_(images),
      world_(world),
      share_(share_of(config.training.batch, world.rank(), world.size())),
      micro_batch_(choose_micro_batch(config, world)),
      rounds_((share_of(config.training.batch, 0, world.size()).count + micro_batch_ - 1) /
              micro_batch_),
      parameters_(model::parameter_specs(config.model), dtype_of(config), true),
      denoiser_(config.model, parameters_, config.precision()),
      diffusion_(config.diffusion),
      optimizer_((model::initialise(parameters_, config.model, config.training.seed), parameters_),
                 config.training.ema),
      reducer_(world.reduction(), parameters_.views(), parameters_.gradient()) {}

void Trainer::start(std::int64_t step) {
  step_ = step;
  data::LoaderOptions options;
  options.seed = config_.training.seed;
  options.global_batch = config_.training.batch;
  options.first = share_.first;
  options.count = share_.count;
  options.flip = config_.data.flip;
  options.start_step = step;
  loader_ = std::make_unique<data::Loader>(images_, options);
}

// b this rank's samples of the step, C channels, H = W image size.
std::optional<monitoring::StepRecord> Trainer::train_step(StopRequest& stop) {
  const auto began = Clock::now();
  const double waited = loader_->waited_seconds();
  const std::vector<std::int64_t> shape{images_.channels(), images_.height(), images_.width()};

  data::Batch batch = loader_->next();
  const at::Tensor pixels =
      at::from_blob(batch.pixels.data(), {share_.count, shape[0], shape[1], shape[2]}, at::kByte);
  const at::Tensor x0 = model::to_signal(pixels, dtype_of(config_));  // [b, C, H, W]
  const model::Draws draws = diffusion_.draw(config_.training.seed, step_, share_.first,
                                             share_.count, shape, dtype_of(config_));

  parameters_.gradient().zero_();
  double loss = 0;
  for (std::int64_t round = 0; round < rounds_; ++round) {
    if (stop.agreed()) return {};
    if (round + 1 == rounds_) reducer_.arm();
    const std::int64_t begin = std::min(round * micro_batch_, share_.count);
    const std::int64_t end = std::min(begin + micro_batch_, share_.count);
    if (begin < end) loss += accumulate(x0, draws, begin, end);
  }
  reducer_.finish();
  loss = sum_over_ranks(loss);

  const double norm = model::norm_of(parameters_.gradient());
  if (!std::isfinite(loss) || !std::isfinite(norm)) {
    throw TogetherError(
        1, fmt::format("step {}: loss {}, gradient norm {}: not finite; start again with a lower "
                       "training.learning_rate",
                       step_ + 1, loss, norm));
  }
  const double rate = config_.training.rate_at(step_);
  optimizer_.step(rate, std::min(1.0, config_.training.clip_norm / (norm + 1e-6)));
  ++step_;
  if (step_ % kReplicaCheckSteps == 0) check_replicas();

  monitoring::StepRecord record;
  record.step = step_;
  record.loss = loss;
  record.grad_norm = norm;
  record.learning_rate = rate;
  record.seconds = seconds_since(began);
  record.samples_per_second = double(config_.training.batch) / record.seconds;
  record.data_wait_seconds = loader_->waited_seconds() - waited;
  record.communication_wait_seconds = reducer_.report().exposed_seconds;
  return record;
}

/// Forward and backward of the samples begin .. end-1 of this rank's share. Returns their part of
/// the global batch's mean squared error; gradients add up to that of the mean.
double Trainer::accumulate(const at::Tensor& x0, const model::Draws& draws, std::int64_t begin,
                           std::int64_t end) {
  const model::Draws mine{draws.t.slice(0, begin, end), draws.noise.slice(0, begin, end)};
  const at::Tensor x = diffusion_.corrupt(x0.slice(0, begin, end), mine);
  const model::Routing routing = denoiser_.route(mine.t);
  const at::Tensor epsilon = denoiser_.forward(x, mine.t, routing);
  const std::int64_t elements = config_.training.batch * images_.image_bytes();
  const at::Tensor loss = (mine.noise - epsilon).square().sum() / double(elements);
  loss.backward();
  return loss.item<double>();
}

void Trainer::check_replicas() {
  std::vector<std::string> names;
  for (const auto& spec : parameters_.specs()) names.push_back(spec.name);
  const auto found = dist::find_divergence(world_.control(), names, parameters_.views());
  if (!found) return;
  throw TogetherError(
      1, fmt::format("step {}: {} on rank {} is no longer what the other ranks hold; the memory or "
                     "the network of that rank's host is suspect; start again without it: the run "
                     "goes on from its last checkpoint",
                     step_, found->name, found->ranks.front()));
}

double Trainer::sum_over_ranks(double mine) {
  const at::Tensor sum = at::full({1}, mine, at::kDouble);
  world_.control().all_reduce(sum)->wait();
  return sum.item<double>();
}

}  // namespace laterna::launch
