#include "dist/experts/sample_placement.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <numeric>

namespace laterna::dist {
namespace {

constexpr double kNoise = 1e-9;            // rounding of sums of costs
constexpr std::int64_t kWork = 1'000'000;  // loads evaluated before the search stops

/// The load that a sample adds to one rank in one layer.
struct Share {
  std::int64_t rank;
  double load;
};

/// The load of every rank in every layer, and the load that each sample adds for each possible
/// owner.
class Loads {
 public:
  Loads(const Placement& placement, const Routing& routing, const Costs& costs)
      : ranks_(placement.ranks()), layers_(std::ssize(routing)) {
    if (routing.empty()) return;
    const std::int64_t total = routing[0].mask.size(1);
    shares_.resize(static_cast<std::size_t>(total * ranks_ * layers_));
    for (std::int64_t l = 0; l < layers_; ++l) add_layer(placement, routing[l], l, costs);
    load_.resize(static_cast<std::size_t>(layers_ * ranks_));
  }

  void add(std::int64_t sample, std::int64_t owner, double sign) {
    for (std::int64_t l = 0; l < layers_; ++l) {
      for (const Share& s : shares(sample, owner, l)) load_[l * ranks_ + s.rank] += sign * s.load;
    }
  }
  /// Returns the estimate and, to break ties, the sum of all loads, which is smaller with fewer
  /// transferred token blocks.
  std::pair<double, double> time() const {
    double slowest = 0;
    for (std::int64_t l = 0; l < layers_; ++l) {
      const auto first = load_.begin() + l * ranks_;
      slowest += *std::max_element(first, first + ranks_);
    }
    return {slowest, std::accumulate(load_.begin(), load_.end(), 0.0)};
  }
  std::int64_t size() const { return std::ssize(load_); }

 private:
  std::vector<Share>& shares(std::int64_t sample, std::int64_t owner, std::int64_t layer) {
    return shares_[static_cast<std::size_t>((sample * ranks_ + owner) * layers_ + layer)];
  }

  void add_layer(const Placement& placement, const LayerRouting& routing, std::int64_t layer,
                 const Costs& costs) {
    const auto replicas = placement.all_replicas(routing.layer);
    const auto mask = routing.mask.accessor<std::uint8_t, 3>();
    std::vector<double> assignments(static_cast<std::size_t>(ranks_)), load(assignments);
    for (std::int64_t sample = 0; sample < routing.mask.size(1); ++sample) {
      for (std::int64_t owner = 0; owner < ranks_; ++owner) {
        std::fill(load.begin(), load.end(), 0);
        for (std::int64_t t = 0; t < routing.mask.size(0); ++t) {
          std::fill(assignments.begin(), assignments.end(), 0);
          for (std::int64_t j = 0; j < placement.candidates(); ++j) {
            if (mask[t][sample][j]) ++assignments[server_of(replicas[j], owner, sample)];
          }
          for (std::int64_t rank = 0; rank < ranks_; ++rank) {
            if (assignments[rank] == 0) continue;
            load[rank] += costs.assignment * assignments[rank];
            if (rank == owner) continue;
            load[rank] += costs.block;
            load[owner] += costs.block;
          }
        }
        for (std::int64_t rank = 0; rank < ranks_; ++rank) {
          if (load[rank] > 0) shares(sample, owner, layer).push_back({rank, load[rank]});
        }
      }
    }
  }

  std::int64_t ranks_, layers_;
  std::vector<std::vector<Share>> shares_;  // [samples * EP owners * layers]
  std::vector<double> load_;                // [layers, EP]
};

}  // namespace

SampleLists consecutive_samples(const std::vector<std::int64_t>& counts) {
  SampleLists samples;
  std::int64_t next = 0;
  for (const auto count : counts) {
    samples.emplace_back(static_cast<std::size_t>(count));
    std::iota(samples.back().begin(), samples.back().end(), next);
    next += count;
  }
  return samples;
}

double estimated_time(const Placement& placement, const Routing& routing,
                      const SampleLists& samples, const Costs& costs) {
  Loads loads(placement, routing, costs);
  for (std::size_t rank = 0; rank < samples.size(); ++rank) {
    for (const auto sample : samples[rank]) loads.add(sample, static_cast<std::int64_t>(rank), 1);
  }
  return loads.time().first;
}

SampleLists place_samples(const Placement& placement, const Routing& routing,
                          const std::vector<std::int64_t>& counts, const Costs& costs) {
  std::vector<std::int64_t> owner;
  for (std::size_t rank = 0; rank < counts.size(); ++rank) {
    owner.insert(owner.end(), counts[rank], static_cast<std::int64_t>(rank));
  }
  const std::int64_t total = std::ssize(owner);
  Loads loads(placement, routing, costs);
  for (std::int64_t sample = 0; sample < total; ++sample) loads.add(sample, owner[sample], 1);
  auto time = loads.time();
  const auto exchange = [&](std::int64_t a, std::int64_t b) {
    loads.add(a, owner[a], -1), loads.add(b, owner[b], -1);
    std::swap(owner[a], owner[b]);
    loads.add(a, owner[a], 1), loads.add(b, owner[b], 1);
  };
  std::int64_t work = loads.size() > 0 ? kWork / loads.size() : 0;  // pairs to try
  for (bool better = true; better && work > 0;) {
    better = false;
    for (std::int64_t a = 0; a < total && work > 0; ++a) {
      for (std::int64_t b = a + 1; b < total && work > 0; ++b) {
        if (owner[a] == owner[b]) continue;
        --work;
        exchange(a, b);
        const auto now = loads.time();
        const bool gain = now.first < time.first - kNoise ||
                          (now.first < time.first + kNoise && now.second < time.second - kNoise);
        if (gain) {
          time = now;
          better = true;
        } else {
          exchange(a, b);
        }
      }
    }
  }
  SampleLists samples(counts.size());
  for (std::int64_t sample = 0; sample < total; ++sample) samples[owner[sample]].push_back(sample);
  return samples;
}

}  // namespace laterna::dist
