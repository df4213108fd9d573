#include "dist/step_plan.h"

#include <ATen/ATen.h>
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <numeric>

namespace laterna::dist {
namespace {

/// Where a sample finds a candidate.
std::int64_t server_of(const std::vector<std::int64_t>& holders, std::int64_t owner,
                       std::int64_t sample) {
  if (std::find(holders.begin(), holders.end(), owner) != holders.end()) return owner;
  return holders[static_cast<std::size_t>(sample) % holders.size()];
}

/// The servers of every sample: [total, N].
std::vector<std::int64_t> servers(const Placement& placement, std::int64_t layer,
                                  const std::vector<std::int64_t>& first) {
  std::vector<std::vector<std::int64_t>> holders;
  for (std::int64_t j = 0; j < placement.candidates(); ++j) {
    holders.push_back(placement.holders(layer, j));
  }
  std::vector<std::int64_t> all;
  for (std::int64_t owner = 0; owner < placement.ranks(); ++owner) {
    for (std::int64_t sample = first[owner]; sample < first[owner + 1]; ++sample) {
      for (const auto& who : holders) all.push_back(server_of(who, owner, sample));
    }
  }
  return all;
}

}  // namespace

LayerPlan plan_layer(const Placement& placement, std::int64_t rank, const Choices& choices,
                     const std::vector<std::int64_t>& first) {
  const auto steps = choices.mask.size(0), total = choices.mask.size(1);
  const auto count = placement.candidates(), ranks = placement.ranks();
  const at::Tensor mask = choices.mask.contiguous();
  const auto* chosen = mask.const_data_ptr<std::uint8_t>();
  const auto server = servers(placement, choices.layer, first);
  const std::int64_t batch = first[rank + 1] - first[rank];
  LayerPlan plan;
  plan.layer = choices.layer;
  plan.samples = total;
  plan.held = placement.held(rank, choices.layer);

  const auto wants = [&](std::int64_t t, std::int64_t sample, std::int64_t j, std::int64_t at) {
    return chosen[(t * total + sample) * count + j] != 0 && server[sample * count + j] == at;
  };
  const auto visits = [&](std::int64_t t, std::int64_t sample, std::int64_t at) {
    for (std::int64_t j = 0; j < count; ++j) {
      if (wants(t, sample, j, at)) return true;
    }
    return false;
  };
  for (std::int64_t t = 0; t < steps; ++t) {
    for (std::int64_t b = 0; b < batch; ++b) {
      for (const auto j : plan.held) plan.own.push_back(wants(t, first[rank] + b, j, rank));
    }
    std::vector<std::int64_t> send(ranks), receive(ranks);
    for (std::int64_t other = 0; other < ranks; ++other) {
      if (other == rank) continue;
      for (std::int64_t b = 0; b < batch; ++b) {
        if (!visits(t, first[rank] + b, other)) continue;
        plan.sent.push_back(t * batch + b);
        ++send[other];
      }
      for (std::int64_t sample = first[other]; sample < first[other + 1]; ++sample) {
        if (!visits(t, sample, rank)) continue;
        plan.received.push_back(t * total + sample);
        for (const auto j : plan.held) plan.guests.push_back(wants(t, sample, j, rank));
        ++receive[other];
      }
    }
    plan.send_rows.push_back(std::move(send));
    plan.receive_rows.push_back(std::move(receive));
  }
  return plan;
}

namespace {

/// Everybody's choices, [layers, T, most, N] for each rank, `most` being the largest count.
struct Shared {
  at::Tensor mask, gate;  // [EP, layers, T, most, N]
};

Shared share(Communicator& group, const std::vector<Choices>& mine, std::int64_t most) {
  std::vector<at::Tensor> masks, gates;
  for (const auto& layer : mine) {
    const std::int64_t missing = most - layer.mask.size(1);
    masks.push_back(at::constant_pad_nd(layer.mask, {0, 0, 0, missing}));
    gates.push_back(at::constant_pad_nd(layer.gate, {0, 0, 0, missing}));
  }
  const at::Tensor mask = at::stack(masks), gate = at::stack(gates);
  const at::Tensor gate_bytes = gate.contiguous().flatten().view(at::kByte);
  const at::Tensor bytes = at::cat({gate_bytes, mask.flatten()});  // numbers where they are aligned
  const at::Tensor all = at::empty({group.size(), bytes.size(0)}, at::kByte);
  group.all_gather(bytes, all)->wait();
  const auto shape = [&](const at::Tensor& part) {
    auto extents = part.sizes().vec();
    extents.insert(extents.begin(), group.size());
    return extents;
  };
  const at::Tensor all_gates = all.slice(1, 0, gate_bytes.numel()).reshape({-1});
  return {all.slice(1, gate_bytes.numel()).reshape(shape(mask)),
          all_gates.view(gate.scalar_type()).view(shape(gate))};
}

/// The weights of the guests' visits: [R, H].
at::Tensor gates_of(const LayerPlan& plan, const at::Tensor& gate) {
  const at::Tensor rows = gate.flatten(0, 1);  // [T * total, N]
  return rows.index_select(0, at::tensor(plan.received, at::kLong))
      .index_select(1, at::tensor(plan.held, at::kLong));
}

}  // namespace

std::vector<RoundPlan> plan_step(Communicator& group, const Placement& placement,
                                 const std::vector<Choices>& mine,
                                 const std::vector<std::int64_t>& counts, std::int64_t micro_batch,
                                 std::int64_t rounds) {
  std::vector<RoundPlan> plans(static_cast<std::size_t>(rounds));
  if (mine.empty()) return plans;
  const Shared shared = share(group, mine, *std::max_element(counts.begin(), counts.end()));
  for (std::int64_t round = 0; round < rounds; ++round) {
    std::vector<std::int64_t> first{0};
    for (const auto count : counts) {
      const std::int64_t begin = std::min(round * micro_batch, count);
      first.push_back(first.back() + std::min(micro_batch, count - begin));
    }
    for (std::size_t layer = 0; layer < mine.size(); ++layer) {
      std::vector<at::Tensor> masks, gates;
      for (std::size_t rank = 0; rank < counts.size(); ++rank) {
        const std::int64_t begin = std::min(round * micro_batch, counts[rank]);
        const std::int64_t size = first[rank + 1] - first[rank];
        const auto part = [&](const at::Tensor& all) {
          return all[static_cast<std::int64_t>(rank)][static_cast<std::int64_t>(layer)].narrow(
              1, begin, size);
        };
        masks.push_back(part(shared.mask));
        gates.push_back(part(shared.gate));
      }
      const Choices choices{mine[layer].layer, at::cat(masks, 1), at::cat(gates, 1)};
      RoundPlan& plan = plans[static_cast<std::size_t>(round)];
      plan.layers.push_back(plan_layer(placement, group.rank(), choices, first));
      plan.gates.push_back(gates_of(plan.layers.back(), choices.gate));
    }
  }
  return plans;
}

std::string to_text(const std::vector<RoundPlan>& rounds) {
  std::string text;
  for (std::size_t round = 0; round < rounds.size(); ++round) {
    for (const auto& layer : rounds[round].layers) {
      text += fmt::format("round {} layer {} holds {}:", round, layer.layer,
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
