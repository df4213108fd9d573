// Compares assignments with plain indexing, and candidates with computing every candidate for every
// sample and masking those that were not selected.
#include "model/candidates.h"

#include "model/initialise.h"
#include "model/router.h"
#include "model/spiking/norm_lif.h"
#include "tests/model/tensors.h"

namespace laterna::model {
namespace {

TEST(Assignments, GatherAndCombineMatchPlainIndexing) {
  at::manual_seed(7);
  for (const auto& [count, selected] : {std::pair{1, 1}, std::pair{3, 2}, std::pair{5, 1}}) {
    for (const std::int64_t steps : {1, 3}) {
      for (const std::int64_t batch : {1, 4}) {
        for (const std::int64_t width : {1, 7, 33}) {
          for (const auto dtype : {at::kDouble, at::kFloat}) {
            const std::int64_t tokens = 3, blocks = steps * batch;
            const at::Tensor mask = largest(at::rand({steps, batch, count}, at::kDouble), selected);
            const Assignments assignments = Assignments::of(mask, tokens);
            // Assignments are in the order of candidate, step, sample.
            const at::Tensor where = mask.permute({2, 0, 1}).reshape(-1).nonzero().view(-1);
            const at::Tensor source = where % blocks, candidate = where.floor_divide(blocks);
            EXPECT_TRUE(at::equal(assignments.source, source));
            const auto gathered = [&](const std::vector<at::Tensor>& in) {
              const Spikes z = Spikes::of(in[0].view({-1, width}));
              return std::vector<at::Tensor>{
                  gather(z, assignments, tokens).values().view({-1, tokens * width})};
            };
            const auto indexed = [&](const std::vector<at::Tensor>& in) {
              return std::vector<at::Tensor>{in[0].index_select(0, source)};
            };
            expect_same(gathered, indexed,
                        {at::rand({blocks, tokens * width}, dtype).lt(0.4).to(dtype)},
                        tolerance_of(dtype));
            const auto combined = [&](const std::vector<at::Tensor>& in) {
              return std::vector<at::Tensor>{combine(in[0], in[1], assignments)};
            };
            const auto added = [&](const std::vector<at::Tensor>& in) {
              const at::Tensor gate = in[1].index({source, candidate});
              return std::vector<at::Tensor>{at::zeros({blocks, tokens * width}, in[0].options())
                                                 .index_add(0, source, in[0] * gate.unsqueeze(1))};
            };
            expect_same(combined, added,
                        {at::randn({where.size(0), tokens * width}, dtype),
                         at::rand({blocks, count}, dtype)},
                        tolerance_of(dtype));
          }
        }
      }
    }
  }
}

/// Computes all candidates for every sample; where a sample did not select one, its neurons get no
/// current and leak.
at::Tensor plain_candidates(const Parameters& p, const ModelConfig& c, const at::Tensor& z,
                            const LayerRouting& routing) {
  std::vector<at::Tensor> steps(z.size(0), at::zeros_like(z[0]));
  for (std::int64_t n = 0; n < c.candidates; ++n) {
    const std::string name = fmt::format("blocks.0.candidates.{}.", n);
    at::Tensor v = at::zeros({z.size(1), z.size(2), c.hidden()}, z.options());  // [B, M, 4D]
    for (std::int64_t t = 0; t < z.size(0); ++t) {
      const at::Tensor met = routing.mask[t].select(1, n).to(z.dtype()).view({-1, 1, 1});
      const at::Tensor up = at::linear(z[t], p[name + "up.weight"], p[name + "up.bias"]);
      const at::Tensor current =
          at::layer_norm(up, {c.hidden()}, p[name + "norm.weight"], p[name + "norm.bias"], 1e-5);
      const at::Tensor u = v + (current - v) / 2;
      const at::Tensor fired = spike(u - 1, kernels::Surrogate::kSigmoid);
      v = met * u * (1 - fired.detach()) + (1 - met) * (v - v / 2);
      const at::Tensor out =
          at::linear(met * fired, p[name + "down.weight"], p[name + "down.bias"]);
      steps[t] = steps[t] + met * routing.probability[t].select(1, n).view({-1, 1, 1}) * out;
    }
  }
  return at::stack(steps);
}

TEST(Candidates, MatchComputingAllAndMasking) {
  at::manual_seed(8);
  ModelConfig config;
  config.image_size = 4, config.width = 6, config.depth = 1, config.heads = 1;
  config.hidden_ratio = 3, config.diffusion_steps = 5, config.spiking_steps = 4;
  for (const auto& [count, selected] : {std::pair{3, 2}, std::pair{5, 1}, std::pair{2, 2}}) {
    config.candidates = count, config.selected = selected;
    const Parameters parameters(parameter_specs(config), at::kDouble, true);
    {
      const at::NoGradGuard no_grad;
      for (const auto& p : parameters.views()) p.copy_(1.2 * at::randn(p.sizes(), p.options()));
    }
    const Candidates candidates(parameters, config, 0, {true, false});
    const at::Tensor mask = largest(at::rand({4, 5, count}, at::kDouble), selected);
    const at::Tensor z = at::rand({4, 5, config.tokens(), 6}).lt(0.3).to(at::kDouble);
    const at::Tensor probability = at::rand({4, 5, count}, at::kDouble);
    std::vector<at::Tensor> weight_gradients;
    const auto with = [&](auto operation) {
      return [&, operation](const std::vector<at::Tensor>& in) -> std::vector<at::Tensor> {
        parameters.gradient().zero_();
        return {operation(in[0], LayerRouting{0, in[1], mask})};
      };
    };
    const auto fused = with([&](const at::Tensor& z_in, const LayerRouting& routing) {
      return candidates.forward(Spikes::of(z_in.view({-1, 6})), routing, {}).view(z.sizes());
    });
    const auto plain = with([&](const at::Tensor& z_in, const LayerRouting& routing) {
      return plain_candidates(parameters, config, z_in, routing);
    });
    expect_same(fused, plain, {z, probability}, 1e-12);
    run(plain, {z, probability});
    const at::Tensor expected = parameters.gradient().clone();
    run(fused, {z, probability});
    EXPECT_GT(expected.abs().max().item<double>(), 0.1);
    expect_close(parameters.gradient(), expected, 1e-12, "parameters");
  }
}

// Samples are numbered in the order of their first token blocks, which is not the order of the
// token blocks of a later step.
TEST(StepAssignments, CombineForAnyOrderOfTokenBlocks) {
  at::manual_seed(13);
  const at::Tensor blocks = at::tensor({0, -1, 1, 2, 0, 1}, at::kLong).view({2, 3});
  const at::Tensor mask = largest(at::rand({5, 4}, at::kDouble), 2);
  const StepAssignments assignments = StepAssignments::of(blocks, mask, 1);
  ASSERT_EQ(assignments.steps.size(), 2U);
  EXPECT_EQ(assignments.count(), 10);
  std::int64_t first = 0;
  for (const auto& step : assignments.steps) {
    const std::int64_t count = step.table.size(0);
    const at::Tensor chosen = mask.narrow(0, first, count);
    const at::Tensor gate = at::rand({count, 4}, at::kDouble);
    // Each output identifies its assignment: 10 * token block + candidate.
    at::Tensor outputs = at::zeros({step.source.size(0), 2}, at::kDouble);
    at::Tensor expected = at::zeros({count, 2}, at::kDouble);
    for (std::int64_t block = 0; block < count; ++block) {
      for (std::int64_t n = 0; n < 4; ++n) {
        const auto assignment = step.table[block][n].item<std::int32_t>();
        EXPECT_EQ(assignment >= 0, chosen[block][n].item<bool>());
        if (assignment < 0) continue;
        EXPECT_EQ(step.source[assignment].item<std::int64_t>(), block);
        outputs[assignment].fill_(double(10 * block + n));
        expected[block] += gate[block][n] * double(10 * block + n);
      }
    }
    expect_close(combine(outputs, gate, step), expected, 1e-14, "fused");
    expect_close(combine_reference(outputs, gate, step), expected, 1e-14, "reference");
    const auto by = [&](auto function) {
      return [&step, function](const std::vector<at::Tensor>& in) {
        return std::vector<at::Tensor>{function(in[0], in[1], step)};
      };
    };
    expect_same(by(combine), by(combine_reference), {outputs, gate}, 1e-14);
    first += count;
  }
}

// A sampler holds only the candidates that it selects: leaving the others out changes nothing, and
// an assignment to one of them throws.
TEST(Candidates, ASubsetSufficesWhereTheOthersAreNotSelected) {
  at::manual_seed(12);
  ModelConfig config;
  config.image_size = 4, config.patch = 2, config.width = 6, config.depth = 1, config.heads = 1;
  config.candidates = 4, config.selected = 2, config.spiking_steps = 3;
  const Parameters all(parameter_specs(config), at::kDouble, false);
  const Parameters some(
      parameter_specs(config, [](std::int64_t, std::int64_t j) { return j == 1 || j == 3; }),
      at::kDouble, false);
  EXPECT_EQ(some.candidates_of(0), (std::vector<std::int64_t>{1, 3}));
  initialise(all, config, 2);
  initialise(some, config, 2);
  at::Tensor mask = at::zeros({3, 5, 4}, at::kByte);
  mask.select(2, 1).fill_(1);
  mask.select(2, 3).fill_(1);
  LayerRouting routing{0, at::rand({3, 5, 4}, at::kDouble), mask};
  const Spikes z = Spikes::of(at::rand({3 * 5 * config.tokens(), 6}).lt(0.3).to(at::kDouble));
  const Candidates whole(all, config, 0, {true, false}), part(some, config, 0, {true, false});
  const at::Tensor sum = part.forward(z, routing, {});
  EXPECT_TRUE(at::equal(sum, whole.forward(z, routing, {})));
  EXPECT_GT(sum.abs().max().item<double>(), 0);
  mask[1][2][1] = 0;
  mask[1][2][0] = 1;
  EXPECT_THROW(part.forward(z, routing, {}), c10::Error);
}

}  // namespace
}  // namespace laterna::model
