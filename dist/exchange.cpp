#include "dist/exchange.h"

#include <ATen/ATen.h>

#include <chrono>
#include <numeric>

#include "dist/bit_packing.h"
#include "dist/collective_arguments.h"

namespace laterna::dist {
namespace {

std::size_t index_of(Leg leg) { return static_cast<std::size_t>(leg); }

at::Tensor rows_of(const std::vector<std::int64_t>& rows, const at::Tensor& like) {
  return at::tensor(rows, at::kLong).to(like.device());
}

}  // namespace

void Exchange::Flight::poll() {
  for (const auto& work : works_) work->test();
}

void Exchange::Flight::wait() {
  const auto start = std::chrono::steady_clock::now();
  for (const auto& work : works_) work->wait();
  traffic_.seconds +=
      std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  works_.clear();
  if (arrive_) arrive_();
}

at::Tensor Exchange::buffer(std::size_t which, std::int64_t rows, std::int64_t columns,
                            at::ScalarType dtype, at::Device device) {
  const auto bytes = rows * columns * static_cast<std::int64_t>(c10::elementSize(dtype));
  at::Tensor& kept = buffers_[which];
  if (!kept.defined() || kept.numel() < bytes) {
    kept = at::empty({bytes}, at::TensorOptions().dtype(at::kByte).device(device));
  }
  return kept.narrow(0, 0, bytes).view(dtype).view({rows, columns});
}

std::vector<std::unique_ptr<Work>> Exchange::post(Leg leg, const at::Tensor& from,
                                                  const Rows& from_rows, const at::Tensor& to,
                                                  const Rows& to_rows) {
  std::vector<std::unique_ptr<Work>> works;
  std::int64_t sent = 0, received = 0;
  for (std::size_t t = 0; t < from_rows.size(); ++t) {
    const auto sum = [](const auto& rows) {
      return std::accumulate(rows.begin(), rows.end(), std::int64_t{0});
    };
    const std::int64_t out = sum(from_rows[t]), in = sum(to_rows[t]);
    works.push_back(group_.all_to_all_v(from.narrow(0, sent, out), from_rows[t],
                                        to.narrow(0, received, in), to_rows[t]));
    sent += out;
    received += in;
  }
  traffic_[index_of(leg)].bytes += sent * row_bytes(from);
  return works;
}

Exchange::Flight Exchange::send_dense(Leg leg, const at::Tensor& from, const Rows& from_rows,
                                      const at::Tensor& to, const Rows& to_rows) {
  traffic_[index_of(leg)].blocks += from.size(0);
  if (!bfloat16_) return {traffic_[index_of(leg)], post(leg, from, from_rows, to, to_rows), {}};
  const std::int64_t elements = from.size(1);
  const at::Tensor out =
      buffer(2 * index_of(leg), from.size(0), elements, at::kBFloat16, from.device());
  const at::Tensor in =
      buffer(2 * index_of(leg) + 1, to.size(0), elements, at::kBFloat16, from.device());
  out.copy_(from);
  return {traffic_[index_of(leg)], post(leg, out, from_rows, in, to_rows),
          [in, to] { to.copy_(in); }};
}

Exchange::Flight Exchange::send_out(Leg leg, const LayerPlan& plan, const at::Tensor& blocks,
                                    const at::Tensor& received) {
  const auto sent = static_cast<std::int64_t>(plan.sent.size());
  const std::size_t out_buffer = 2 * index_of(leg);
  if (leg != Leg::spikes) {
    // In bfloat16 the first buffer is the wire's; the gathered rows then need one of their own.
    at::Tensor out =
        bfloat16_ ? at::empty({sent, blocks.size(1)}, blocks.options())
                  : buffer(out_buffer, sent, blocks.size(1), blocks.scalar_type(), blocks.device());
    at::index_select_out(out, blocks, 0, rows_of(plan.sent, blocks));
    return send_dense(leg, out, plan.send_rows, received, plan.receive_rows);
  }
  const std::int64_t bytes = packed_bytes(blocks.size(1));
  const at::Tensor out = buffer(out_buffer, sent, bytes, at::kByte, blocks.device());
  const at::Tensor in = buffer(out_buffer + 1, received.size(0), bytes, at::kByte, blocks.device());
  pack_rows(blocks, rows_of(plan.sent, blocks), out);
  traffic_[index_of(leg)].blocks += sent;
  return {traffic_[index_of(leg)], post(leg, out, plan.send_rows, in, plan.receive_rows),
          [in, received] { unpack_rows(in, received); }};
}

Exchange::Flight Exchange::send_back(Leg leg, const LayerPlan& plan, const at::Tensor& blocks,
                                     const at::Tensor& returned) {
  return send_dense(leg, blocks, plan.receive_rows, returned, plan.send_rows);
}

Exchange::Flight Exchange::send_scalars_back(const LayerPlan& plan, const at::Tensor& scalars,
                                             const at::Tensor& returned) {
  const Leg leg = Leg::spike_gradients;
  return {
      traffic_[index_of(leg)], post(leg, scalars, plan.receive_rows, returned, plan.send_rows), {}};
}

}  // namespace laterna::dist
