#include "dist/experts/step_plan.h"

#include <ATen/ATen.h>
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <numeric>

#include "dist/agreement.h"
#include "dist/experts/sample_placement.h"

namespace laterna::dist {
namespace {

/// Returns the rank that computes each candidate for each sample: [total, N].
std::vector<std::int64_t> servers(const Placement& placement, std::int64_t layer,
                                  const std::vector<std::int64_t>& offsets) {
  const auto replicas = placement.all_replicas(layer);
  std::vector<std::int64_t> all;
  for (std::int64_t owner = 0; owner < placement.ranks(); ++owner) {
    for (std::int64_t sample = offsets[owner]; sample < offsets[owner + 1]; ++sample) {
      for (const auto& who : replicas) all.push_back(server_of(who, owner, sample));
    }
  }
  return all;
}

}  // namespace

std::vector<std::int64_t> row_offsets(const std::vector<std::vector<std::int64_t>>& rows) {
  std::vector<std::int64_t> offsets{0};
  for (const auto& step : rows) {
    offsets.push_back(std::accumulate(step.begin(), step.end(), offsets.back()));
  }
  return offsets;
}

LayerPlan plan_layer(const Placement& placement, std::int64_t rank, const LayerRouting& routing,
                     const std::vector<std::int64_t>& offsets) {
  const auto steps = routing.mask.size(0), total = routing.mask.size(1);
  const auto count = placement.candidates(), ranks = placement.ranks();
  const at::Tensor mask = routing.mask.contiguous();
  const auto* chosen = mask.const_data_ptr<std::uint8_t>();
  const at::Tensor probability =
      routing.probability.detach().to(at::kCPU, at::kDouble).contiguous();
  const auto* gate = probability.const_data_ptr<double>();
  const auto server = servers(placement, routing.layer, offsets);
  const std::int64_t batch = offsets[rank + 1] - offsets[rank];
  LayerPlan plan;
  plan.layer = routing.layer;
  plan.samples = total;
  plan.held = placement.held(rank, routing.layer);

  const auto wants = [&](std::int64_t t, std::int64_t sample, std::int64_t j, std::int64_t at) {
    return chosen[(t * total + sample) * count + j] != 0 && server[sample * count + j] == at;
  };
  const auto needs = [&](std::int64_t t, std::int64_t sample, std::int64_t at) {
    for (std::int64_t j = 0; j < count; ++j) {
      if (wants(t, sample, j, at)) return true;
    }
    return false;
  };
  for (std::int64_t t = 0; t < steps; ++t) {
    for (std::int64_t b = 0; b < batch; ++b) {
      for (const auto j : plan.held) plan.local.push_back(wants(t, offsets[rank] + b, j, rank));
    }
    std::vector<std::int64_t> send(ranks), receive(ranks);
    for (std::int64_t other = 0; other < ranks; ++other) {
      if (other == rank) continue;
      for (std::int64_t b = 0; b < batch; ++b) {
        if (!needs(t, offsets[rank] + b, other)) continue;
        plan.sent.push_back(t * batch + b);
        ++send[other];
      }
      for (std::int64_t sample = offsets[other]; sample < offsets[other + 1]; ++sample) {
        if (!needs(t, sample, rank)) continue;
        plan.received.push_back(t * total + sample);
        for (const auto j : plan.held) {
          plan.remote.push_back(wants(t, sample, j, rank));
          plan.gates.push_back(gate[(t * total + sample) * count + j]);
        }
        ++receive[other];
      }
    }
    plan.send_rows.push_back(std::move(send));
    plan.receive_rows.push_back(std::move(receive));
  }
  return plan;
}

void attach(Routing& routing, const MicroBatchPlan& plan) {
  TORCH_CHECK(plan.empty() || plan.size() == routing.size(), "attach: ", plan.size(), " plans for ",
              routing.size(), " layers");
  for (std::size_t i = 0; i < plan.size(); ++i) routing[i].plan = &plan[i];
}

namespace {

/// Returns the routing of the group's whole batch, on the CPU, from those of each rank's
/// consecutive samples.
Routing share(Communicator& group, const Routing& mine, const std::vector<std::int64_t>& counts) {
  const std::int64_t most = *std::max_element(counts.begin(), counts.end());
  std::vector<at::Tensor> masks, gates;
  for (const auto& layer : mine) {
    const std::int64_t missing = most - layer.mask.size(1);
    masks.push_back(at::constant_pad_nd(layer.mask, {0, 0, 0, missing}));
    gates.push_back(at::constant_pad_nd(layer.probability.detach().cpu(), {0, 0, 0, missing}));
  }
  const at::Tensor mask = at::stack(masks), gate = at::stack(gates);  // [layers, T, most, N]
  const at::Tensor gate_bytes = gate.contiguous().flatten().view(at::kByte);
  const at::Tensor bytes = at::cat({gate_bytes, mask.flatten()});  // gates first, for alignment
  const at::Tensor all = gather_facts(group, bytes);

  std::vector<at::Tensor> all_masks, all_gates;  // of each rank, [layers, T, count, N]
  for (std::int64_t rank = 0; rank < group.size(); ++rank) {
    const at::Tensor row = all[rank].clone();
    const at::Tensor its_gates = row.narrow(0, 0, gate_bytes.numel()).view(gate.scalar_type());
    const at::Tensor its_masks = row.narrow(0, gate_bytes.numel(), mask.numel());
    all_gates.push_back(its_gates.view(gate.sizes()).narrow(2, 0, counts[rank]));
    all_masks.push_back(its_masks.view(mask.sizes()).narrow(2, 0, counts[rank]));
  }
  const at::Tensor whole_mask = at::cat(all_masks, 2);
  const at::Tensor whole_gate = at::cat(all_gates, 2).to(at::kDouble);
  Routing routing;
  for (std::size_t layer = 0; layer < mine.size(); ++layer) {
    const auto index = static_cast<std::int64_t>(layer);
    routing.push_back({mine[layer].layer, whole_gate[index], whole_mask[index]});
  }
  return routing;
}

}  // namespace

StepPlan plan_step(Communicator& group, const Placement& placement, const Routing& mine,
                   const std::vector<std::int64_t>& counts, std::int64_t micro_batch,
                   std::int64_t micro_batches, Placing placing) {
  const auto rank = static_cast<std::size_t>(group.rank());
  StepPlan plan;
  plan.micro_batches.resize(static_cast<std::size_t>(micro_batches));
  if (mine.empty()) {
    plan.samples = consecutive_samples(counts)[rank];
    return plan;
  }
  const auto routing = share(group, mine, counts);
  const auto placed = placing == Placing::by_time ? place_samples(placement, routing, counts, {})
                                                  : consecutive_samples(counts);
  plan.samples = placed[rank];
  for (std::int64_t i = 0; i < micro_batches; ++i) {
    std::vector<std::int64_t> offsets{0}, samples;  // of the micro-batch, rank by rank
    for (const auto& all : placed) {
      const auto begin = std::min<std::int64_t>(i * micro_batch, std::ssize(all));
      const auto end = std::min<std::int64_t>(begin + micro_batch, std::ssize(all));
      samples.insert(samples.end(), all.begin() + begin, all.begin() + end);
      offsets.push_back(std::ssize(samples));
    }
    const at::Tensor of_micro_batch = at::tensor(samples, at::kLong);
    MicroBatchPlan& here = plan.micro_batches[static_cast<std::size_t>(i)];
    for (const auto& layer : routing) {
      const LayerRouting part{layer.layer, layer.probability.index_select(1, of_micro_batch),
                              layer.mask.index_select(1, of_micro_batch)};
      here.push_back(plan_layer(placement, group.rank(), part, offsets));
    }
  }
  return plan;
}

std::string to_text(const std::vector<MicroBatchPlan>& micro_batches) {
  std::string text;
  for (std::size_t i = 0; i < micro_batches.size(); ++i) {
    for (const auto& layer : micro_batches[i]) {
      text += fmt::format("micro-batch {} layer {} holds {}:", i, layer.layer,
                          fmt::join(layer.held, ","));
      for (std::size_t t = 0; t < layer.send_rows.size(); ++t) {
        text +=
            fmt::format(" step {} sends [{}] receives [{}]", t, fmt::join(layer.send_rows[t], " "),
                        fmt::join(layer.receive_rows[t], " "));
      }
      text += "\n";
    }
  }
  return text;
}

}  // namespace laterna::dist
