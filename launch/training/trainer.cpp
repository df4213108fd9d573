#include "launch/training/trainer.h"

#include <ATen/ATen.h>
#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <numeric>
#include <string>

#include "data/host.h"
#include "dist/agreement.h"
#include "dist/replica_check.h"
#include "launch/collective.h"
#include "launch/training/observations.h"
#include "model/initialise.h"

namespace laterna::launch {
namespace {

using data::seconds_since;

using Clock = std::chrono::steady_clock;

constexpr std::int64_t kReplicaCheckSteps = 500;  // between comparisons of the replicas' weights
constexpr std::int64_t kLookSteps = 100;          // between observations of spikes and routers

at::ScalarType dtype_of(const Config& config) {
  return config.precision().float64 ? at::kDouble : at::kFloat;
}

void check_images(const data::ImageSet& images, const Config& config) {
  const auto& m = config.model;
  if (images.channels() == m.channels && images.height() == m.image_size &&
      images.width() == m.image_size) {
    return;
  }
  throw UsageError(
      fmt::format("data.path = {}: its images are {}x{}x{}, the model expects {}x{}x{} "
                  "(channels, height, width); change model.channels and model.image_size, or "
                  "import the data with --size {}",
                  config.data.path, images.channels(), images.height(), images.width(), m.channels,
                  m.image_size, m.image_size, m.image_size));
}

}  // namespace

data::ImageSet open_images(const Config& config) {
  if (config.data.path.empty()) {
    throw UsageError(
        "data.path is not set; give the folder of a data set that `laterna data` has made");
  }
  auto images = data::ImageSet::open(config.data.path);
  check_images(images, config);
  return images;
}

void form_groups(dist::World& world, const Config& config) {
  const std::int64_t expert = config.parallel.expert;
  if (world.size() % expert != 0) {
    throw CollectiveError(2,
                          fmt::format("parallel.expert = {} does not divide the {} rank(s); start "
                                      "a multiple of {} ranks, or set another value",
                                      expert, world.size(), expert));
  }
  world.form_groups(expert, config.placement().shards());
}

namespace {

/// Returns views of the parameters of the candidates in selecting layers, or of all other
/// parameters.
std::vector<at::Tensor> views_of(const model::Parameters& parameters, bool candidates) {
  std::vector<at::Tensor> views;
  for (std::size_t i = 0; i < parameters.specs().size(); ++i) {
    if (parameters.specs()[i].candidate == candidates) views.push_back(parameters.views()[i]);
  }
  return views;
}

/// Returns the world rank of the first rank of this rank's group, whose ranks are consecutive.
int first_of_group(dist::World& world) { return world.rank() - world.exchange().rank(); }

/// Returns how many samples each rank of the group trains: [EP].
std::vector<std::int64_t> counts_of_group(const Config& config, dist::World& world) {
  std::vector<std::int64_t> counts;
  for (int rank = 0; rank < world.exchange().size(); ++rank) {
    const int of_world = first_of_group(world) + rank;
    counts.push_back(data::share_of(config.training.batch, of_world, world.size()).count);
  }
  return counts;
}

at::Tensor shared_gradient(const model::Parameters& parameters) {
  return parameters.gradient().narrow(0, 0, parameters.shared_size());
}

at::Tensor candidates_gradient(const model::Parameters& parameters) {
  return parameters.gradient().slice(0, parameters.shared_size());
}

}  // namespace

Trainer::Trainer(const Config& config, const data::ImageSet& images, dist::World& world)
    : config_(config),
      images_(images),
      world_(world),
      share_(data::share_of(config.training.batch, world.rank(), world.size())),
      counts_(counts_of_group(config, world)),
      group_share_{data::share_of(config.training.batch, first_of_group(world), world.size()).first,
                   std::accumulate(counts_.begin(), counts_.end(), std::int64_t{0})},
      micro_batch_(choose_micro_batch(config, world)),
      micro_batches_(
          (data::share_of(config.training.batch, 0, world.size()).count + micro_batch_ - 1) /
          micro_batch_),
      exchange_(world.exchange(), &world.heartbeat()),
      group_{config.placement(), world.exchange().rank(), exchange_},
      parameters_(model::parameter_specs(config.model, group_.placement, group_.rank),
                  dtype_of(config), true, world.device().torch()),
      denoiser_(config.model, parameters_, config.precision(), &group_),
      diffusion_(config.diffusion),
      optimizer_((model::initialise(parameters_, config.model, config.training.seed), parameters_),
                 config.training.ema),
      reducer_(world.reduction(), views_of(parameters_, false), shared_gradient(parameters_)),
      candidates_reducer_(world.replica_group(), views_of(parameters_, true),
                          candidates_gradient(parameters_)) {}

void Trainer::start(std::int64_t step) {
  step_ = step;
  data::LoaderOptions options;
  options.seed = config_.training.seed;
  options.global_batch = config_.training.batch;
  options.first = group_share_.first;
  options.count = group_share_.count;
  options.flip = config_.data.flip;
  options.start_step = step;
  loader_ = std::make_unique<data::Loader>(images_, options);
}

std::vector<std::int64_t> Trainer::image_shape() const {
  return {images_.channels(), images_.height(), images_.width()};
}

namespace {

double waited_for(const dist::Exchange& exchange) {
  double seconds = 0;
  for (const auto& transfer : exchange.traffic()) seconds += transfer.seconds;
  return seconds;
}

/// The scope of one part of a step: names `operation` in the heartbeat and adds the part's duration
/// to `seconds`.
class Part {
 public:
  Part(dist::Heartbeat& heartbeat, const char* operation, double& seconds)
      : scope_(heartbeat, operation, -1), seconds_(seconds) {}
  ~Part() { seconds_ += seconds_since(began_); }
  Part(const Part&) = delete;
  Part& operator=(const Part&) = delete;

 private:
  dist::Heartbeat::Scope scope_;
  double& seconds_;
  Clock::time_point began_ = Clock::now();
};

}  // namespace

std::optional<monitoring::StepRecord> Trainer::train_step(StopRequest& stop) {
  const auto began = Clock::now();
  const double waited = loader_->waited_seconds();
  auto& heartbeat = world_.heartbeat();
  heartbeat.set_step(step_ + 1);
  spent_ = {};
  data::Batch batch = [&] {
    const Part part(heartbeat, "waiting for data", spent_.data);
    return loader_->next();
  }();
  const dist::StepPlan plan = this->plan();
  StepTotals totals(config_, world_, exchange_);
  if (step_ >= next_look_) {
    watched_.emplace(config_.model);
    next_look_ = (step_ / kLookSteps + 1) * kLookSteps;
  }
  if (!accumulate_all(stop, batch, plan, totals)) return {};
  reduce(totals);

  const double squares = model::sum_of_squares(shared_gradient(parameters_));
  const double norm = std::sqrt(squares + totals.candidates_squares);
  const bool finite = std::isfinite(totals.record.loss) && std::isfinite(norm);
  const double rate = config_.training.rate_at(step_);
  update(norm, finite, totals);

  monitoring::StepRecord record = std::move(totals.record);
  record.step = step_;
  record.samples = config_.training.batch;
  record.grad_norm = norm;
  record.skipped = !finite;
  record.learning_rate = rate;
  record.seconds = seconds_since(began);
  record.samples_per_second = double(config_.training.batch) / record.seconds;
  record.data_wait_seconds = loader_->waited_seconds() - waited;
  record.communication_wait_seconds =
      reducer_.report().exposed_seconds + candidates_reducer_.report().exposed_seconds;
  record.phases = phases();
  if (watched_) {
    record.lateral = lateral_facts(config_.model, parameters_);
    record.spike_rates = spike_rates(*watched_);
    watched_.reset();
  }
  return record;
}

/// Runs forward and backward on all of this rank's samples. Returns false when the ranks agreed to
/// stop.
// g: the group's samples of the step; C channels, H = W image size.
bool Trainer::accumulate_all(StopRequest& stop, data::Batch& batch, const dist::StepPlan& plan,
                             StepTotals& totals) {
  const auto began = Clock::now();
  const double exchanged = waited_for(exchange_);
  auto extents = image_shape();
  extents.insert(extents.begin(), group_share_.count);
  const at::Tensor pixels = at::from_blob(batch.pixels.data(), extents, at::kByte);  // [g, C, H, W]
  parameters_.gradient().zero_();
  for (std::int64_t i = 0; i < micro_batches_; ++i) {
    {
      const Part part(world_.heartbeat(), "checking for requests to stop", spent_.agreeing);
      if (stop.agreed()) return false;
    }
    if (i + 1 == micro_batches_) {
      reducer_.arm();
      candidates_reducer_.arm();
    }
    const std::int64_t begin = std::min(i * micro_batch_, share_.count);
    const std::int64_t end = std::min(begin + micro_batch_, share_.count);
    accumulate(pixels, {plan.samples.begin() + begin, plan.samples.begin() + end},
               plan.micro_batches[static_cast<std::size_t>(i)],
               watched_ && i == 0 && end > begin ? watched_->probe() : model::SpikeProbe(), totals);
  }
  totals.mine().step_seconds = spent_.data + spent_.plan + seconds_since(began) - spent_.agreeing -
                               (waited_for(exchange_) - exchanged);
  totals.mine().memory_bytes = resident_memory();
  return true;
}

/// Sums the gradients and the step's totals over the ranks.
void Trainer::reduce(StepTotals& totals) {
  {
    const Part part(world_.heartbeat(), "summing gradients", spent_.reduce);
    reducer_.finish();
    candidates_reducer_.finish();
  }
  totals.candidates_squares = model::sum_of_squares(candidates_gradient(parameters_));
  const Part part(world_.heartbeat(), "summing the step's totals", spent_.agreeing);
  totals.sum();
}

/// Updates the weights and ends the step. `norm` and `finite` are the same on all ranks, so that
/// all ranks do the same.
void Trainer::update(double norm, bool finite, const StepTotals& totals) {
  const Part part(world_.heartbeat(), "optimiser", spent_.optimizer);
  if (!finite && ++skipped_ == kMostSkipped) fail_not_finite(norm, totals);
  if (finite) {
    skipped_ = 0;
    optimizer_.step(config_.training.rate_at(step_),
                    std::min(1.0, config_.training.clip_norm / (norm + 1e-6)));
  }
  ++step_;
  if (step_ % kReplicaCheckSteps == 0) check_replicas();
}

std::vector<monitoring::Phase> Trainer::phases() const {
  return {{"data", spent_.data},       {"plan", spent_.plan},
          {"forward", spent_.forward}, {"backward", spent_.backward},
          {"reduce", spent_.reduce},   {"optimizer", spent_.optimizer}};
}

/// Collective. Throws CollectiveError naming the first parameter whose weights, or else whose
/// gradient, are not finite.
void Trainer::fail_not_finite(double norm, const StepTotals& totals) {
  std::optional<dist::Failure> first;
  for (const bool gradient : {false, true}) {
    const at::Tensor& flat = gradient ? parameters_.gradient() : parameters_.values();
    for (const auto& spec : parameters_.specs()) {
      if (first) break;
      const at::Tensor values = model::Parameters::view_of(flat.detach(), spec);
      if (at::isfinite(values).all().item<bool>()) continue;
      first = dist::Failure{
          1, fmt::format("{} {}", gradient ? "the gradient of" : "the weights", spec.name)};
    }
  }
  const auto agreed = dist::agree_on_failure(world_.control(), first);
  throw CollectiveError(
      1, fmt::format(
             "steps {} to {}: the loss ({}) or the gradient norm ({}) was not finite, and the "
             "weights were not updated; {}; the run stays at its last checkpoint: start a new "
             "run with a lower training.learning_rate, or with more training.warmup",
             step_ + 2 - kMostSkipped, step_ + 1, totals.record.loss, norm,
             agreed ? "not finite first: " + agreed->message : "only activations are not finite"));
}

/// Returns which of the group's samples this rank trains, and what it sends and receives in each
/// micro-batch: nothing where EP is 1.
dist::StepPlan Trainer::plan() {
  const Part part(world_.heartbeat(), "planning the step", spent_.plan);
  model::Routing mine;
  if (group_.placement.ranks() > 1) {
    const at::NoGradGuard no_grad;
    const auto t =
        diffusion_.draw(config_.training.seed, step_, share_.first, share_.count, {0}, at::kFloat)
            .t;
    mine = denoiser_.route(t);
  }
  return dist::plan_step(world_.exchange(), group_.placement, mine, counts_, micro_batch_,
                         micro_batches_);
}

/// Runs forward and backward on a micro-batch: the `samples` of the group, whose images are
/// `pixels` uint8 [g, C, H, W]. Adds its part of the global batch's mean squared error to `totals`;
/// the gradients of all micro-batches and ranks sum to that of the mean, or of the mean weighted as
/// training.weighting says. Collective, also without samples: the graph is the same on every rank,
/// and so is the order in which backward reaches exchanges and reducers.
void Trainer::accumulate(const at::Tensor& pixels, std::vector<std::int64_t> samples,
                         const dist::MicroBatchPlan& plan, const model::SpikeProbe& probe,
                         StepTotals& totals) {
  auto forward = std::make_optional<Part>(world_.heartbeat(), "forward", spent_.forward);
  const at::Device device = world_.device().torch();
  const at::Tensor x0 = model::to_signal(
      pixels.index_select(0, at::tensor(samples, at::kLong)).to(device), dtype_of(config_));
  for (auto& sample : samples) sample += group_share_.first;  // in the global batch
  model::Draws draws =
      diffusion_.draw(config_.training.seed, step_, samples, image_shape(), dtype_of(config_));
  draws.noise = draws.noise.to(device);
  const at::Tensor x = diffusion_.corrupt(x0, draws);
  model::Routing routing = denoiser_.route(draws.t);
  dist::attach(routing, plan);
  const at::Tensor epsilon = denoiser_.forward(x, draws.t, routing, probe);
  const std::int64_t elements = config_.training.batch * images_.image_bytes();
  const model::Loss loss =
      diffusion_.loss(epsilon, draws, elements, config_.training.weighs_by_snr());
  forward.reset();
  const Part part(world_.heartbeat(), "backward", spent_.backward);
  loss.minimised.backward();
  totals.record.loss += loss.mean.item<double>();
  totals.add(routing);
  totals.add(plan);
}

/// Collective. Compares the parameters that every rank holds, and their averages, over all ranks,
/// and those of the candidates within each replica group. Throws CollectiveError naming the first
/// parameter that differs, and a rank.
void Trainer::check_replicas() {
  const auto scope = world_.heartbeat().enter("comparing the ranks' weights");
  std::optional<dist::Failure> failure;
  for (const bool candidates : {false, true}) {
    std::vector<std::string> names;
    std::vector<at::Tensor> tensors;
    for (const auto& spec : parameters_.specs()) {
      if (spec.candidate != candidates) continue;
      names.push_back(spec.name);
      tensors.push_back(model::Parameters::view_of(parameters_.values(), spec));
      names.push_back("the average of " + spec.name);
      tensors.push_back(model::Parameters::view_of(optimizer_.average(), spec));
    }
    auto& replicas = candidates ? world_.replica_group() : world_.control();
    const auto found = dist::find_divergence(replicas, names, tensors);
    if (!found || failure) continue;
    const bool mine = std::count(found->ranks.begin(), found->ranks.end(), replicas.rank()) > 0;
    if (mine) failure = dist::Failure{1, found->name};
  }
  const auto agreed = dist::agree_on_failure(world_.control(), failure);
  if (!agreed) return;
  throw CollectiveError(
      1,
      fmt::format("step {}: {} on rank {} differs from the other ranks' copies; the memory or the "
                  "network of that rank's host is suspect; start again without that host: the run "
                  "resumes from its last checkpoint",
                  step_, agreed->message, agreed->rank));
}

}  // namespace laterna::launch
