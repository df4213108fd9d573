#include "dist/experts/exchange.h"

#include <ATen/ATen.h>

#include <chrono>
#include <optional>

#include "data/host.h"
#include "dist/comm/collective_arguments.h"
#include "dist/experts/bit_packing.h"

namespace laterna::dist {
namespace {

std::size_t index_of(Transfer transfer) { return static_cast<std::size_t>(transfer); }

}  // namespace

at::Tensor Exchange::buffer(Transfer transfer, Use use, std::int64_t rows, std::int64_t columns,
                            at::ScalarType dtype, at::Device device) {
  const auto bytes = rows * columns * static_cast<std::int64_t>(c10::elementSize(dtype));
  at::Tensor& kept = buffers_[3 * index_of(transfer) + static_cast<std::size_t>(use)];
  if (!kept.defined() || kept.numel() < bytes) {
    kept = at::empty({bytes}, at::TensorOptions().dtype(at::kByte).device(device));
  }
  return kept.narrow(0, 0, bytes).view(dtype).view({rows, columns});
}

at::Tensor Exchange::receive_buffer(Transfer transfer, std::int64_t rows, std::int64_t columns,
                                    const at::Tensor& like) {
  return buffer(transfer, Use::arrived, rows, columns, like.scalar_type(), like.device());
}

Exchange::PendingTransfer Exchange::send_out(Transfer transfer, const LayerPlan& plan,
                                             const at::Tensor& blocks, const at::Tensor& received) {
  const bool packed = blocks.scalar_type() == at::kByte;
  const WireFormat format = packed                           ? WireFormat::plain
                            : transfer == Transfer::dispatch ? WireFormat::bits
                                                             : dense_format();
  PendingTransfer pending(*this, transfer, format, plan, /*back=*/false, received);
  if (format == WireFormat::plain) {  // selected rows need a send buffer
    pending.out_ = buffer(transfer, Use::sending, pending.sent_.back(), blocks.size(1),
                          blocks.scalar_type(), blocks.device());
  }
  const at::Tensor numbers = at::tensor(plan.sent, at::kLong).to(blocks.device());
  for (std::int64_t t = 0; t < std::ssize(plan.send_rows); ++t) {
    pending.send_selected(t, blocks, numbers);
  }
  return pending;
}

Exchange::PendingTransfer Exchange::begin_back(Transfer transfer, const LayerPlan& plan,
                                               const at::Tensor& returned) {
  return {*this, transfer, dense_format(), plan, /*back=*/true, returned};
}

Exchange::PendingTransfer Exchange::send_back(Transfer transfer, const LayerPlan& plan,
                                              const at::Tensor& blocks,
                                              const at::Tensor& returned) {
  PendingTransfer pending = begin_back(transfer, plan, returned);
  for (std::int64_t t = 0; t < std::ssize(plan.receive_rows); ++t) {
    pending.send(t, blocks.slice(0, pending.sent_[t], pending.sent_[t + 1]));
  }
  return pending;
}

Exchange::PendingTransfer Exchange::send_scalars_back(const LayerPlan& plan,
                                                      const at::Tensor& scalars,
                                                      const at::Tensor& returned) {
  PendingTransfer pending(*this, Transfer::dispatch_backward, WireFormat::plain, plan,
                          /*back=*/true, returned);
  const std::int64_t blocks = traffic_[index_of(Transfer::dispatch_backward)].blocks;
  for (std::int64_t t = 0; t < std::ssize(plan.receive_rows); ++t) {
    pending.send(t, scalars.slice(0, pending.sent_[t], pending.sent_[t + 1]));
  }
  traffic_[index_of(Transfer::dispatch_backward)].blocks = blocks;  // scalars are not counted
  return pending;
}

Exchange::PendingTransfer::PendingTransfer(Exchange& exchange, Transfer transfer, WireFormat format,
                                           const LayerPlan& plan, bool back, const at::Tensor& to)
    : exchange_(exchange),
      transfer_(transfer),
      format_(format),
      layer_(plan.layer),
      send_rows_(back ? plan.receive_rows : plan.send_rows),
      receive_rows_(back ? plan.send_rows : plan.receive_rows),
      sent_(row_offsets(send_rows_)),
      received_(row_offsets(receive_rows_)),
      to_(to),
      works_(send_rows_.size()) {
  if (format == WireFormat::plain) return;
  const bool bits = format == WireFormat::bits;
  const auto dtype = bits ? at::kByte : at::kBFloat16;
  const std::int64_t columns = bits ? packed_bytes(to.size(1)) : to.size(1);
  out_ = exchange.buffer(transfer, Use::sending, sent_.back(), columns, dtype, to.device());
  in_ = exchange.buffer(transfer, Use::receiving, received_.back(), columns, dtype, to.device());
}

at::Tensor Exchange::PendingTransfer::outgoing(std::int64_t step) {
  return out_.defined() ? out_.slice(0, sent_[step], sent_[step + 1]) : at::Tensor();
}

void Exchange::PendingTransfer::send_selected(std::int64_t step, const at::Tensor& blocks,
                                              const at::Tensor& numbers) {
  const at::Tensor mine = numbers.slice(0, sent_[step], sent_[step + 1]);
  at::Tensor leaving = outgoing(step);
  switch (format_) {
    case WireFormat::bits:
      pack_rows(blocks, mine, leaving);
      break;
    case WireFormat::bfloat16:
      leaving.copy_(blocks.index_select(0, mine));
      break;
    case WireFormat::plain:
      at::index_select_out(leaving, blocks, 0, mine);
      break;
  }
  post(step, leaving);
}

void Exchange::PendingTransfer::send(std::int64_t step, const at::Tensor& rows) {
  at::Tensor leaving = outgoing(step);
  if (leaving.defined()) leaving.copy_(rows);
  post(step, leaving.defined() ? leaving : rows);
}

void Exchange::PendingTransfer::post(std::int64_t step, const at::Tensor& rows) {
  Traffic& traffic = exchange_.traffic_[index_of(transfer_)];
  traffic.blocks += rows.size(0);
  traffic.bytes += rows.size(0) * row_bytes(rows);
  const at::Tensor& in = in_.defined() ? in_ : to_;
  works_[step] = exchange_.group_.all_to_all_v(rows, send_rows_[step],
                                               in.slice(0, received_[step], received_[step + 1]),
                                               receive_rows_[step]);
}

void Exchange::PendingTransfer::poll() {
  for (const auto& work : works_) {
    if (work) work->test();
  }
}

void Exchange::PendingTransfer::wait(std::int64_t step) {
  const auto start = std::chrono::steady_clock::now();
  {
    std::optional<Heartbeat::Scope> scope;
    if (exchange_.heartbeat_)
      scope.emplace(*exchange_.heartbeat_, kTransferNames[index_of(transfer_)], layer_);
    works_[step]->wait();
  }
  works_[step].reset();
  exchange_.traffic_[index_of(transfer_)].seconds += data::seconds_since(start);
  if (!in_.defined()) return;
  const at::Tensor arrived = in_.slice(0, received_[step], received_[step + 1]);
  at::Tensor place = to_.slice(0, received_[step], received_[step + 1]);
  format_ == WireFormat::bits ? unpack_rows(arrived, place)
                              : static_cast<void>(place.copy_(arrived));
}

void Exchange::PendingTransfer::wait() {
  for (std::size_t step = 0; step < works_.size(); ++step) {
    if (works_[step]) wait(static_cast<std::int64_t>(step));
  }
}

}  // namespace laterna::dist
