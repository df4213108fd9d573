#include "dist/experts/exchange.h"

#include <ATen/ATen.h>

#include <chrono>
#include <optional>

#include "data/host.h"
#include "dist/comm/collective_arguments.h"

namespace laterna::dist {
namespace {

/// Whether rows go from the samples' ranks to those of their candidates.
bool goes_out(Transfer transfer) {
  return transfer == Transfer::dispatch || transfer == Transfer::combine_backward;
}

}  // namespace

Exchange::PendingTransfer Exchange::begin(Transfer transfer, const LayerPlan& plan,
                                          const at::Tensor& received, Rows rows) {
  return {*this, transfer, plan, received, rows};
}

Exchange::PendingTransfer Exchange::send(Transfer transfer, const LayerPlan& plan,
                                         const at::Tensor& sent, const at::Tensor& received,
                                         Rows rows) {
  PendingTransfer pending = begin(transfer, plan, received, rows);
  for (std::int64_t t = 0; t < std::ssize(pending.works_); ++t) {
    pending.send(t, sent.slice(0, pending.sent_[t], pending.sent_[t + 1]));
  }
  return pending;
}

Exchange::PendingTransfer Exchange::send_out(Transfer transfer, const LayerPlan& plan,
                                             const at::Tensor& blocks, const at::Tensor& received) {
  PendingTransfer pending = begin(transfer, plan, received);
  const at::Tensor numbers = at::tensor(plan.sent, at::kLong).to(blocks.device());
  for (std::int64_t t = 0; t < std::ssize(pending.works_); ++t) {
    const at::Tensor of_step = numbers.slice(0, pending.sent_[t], pending.sent_[t + 1]);
    pending.send(t, blocks.index_select(0, of_step));
  }
  return pending;
}

at::Tensor Exchange::receive_buffer(Transfer transfer, std::int64_t rows, std::int64_t columns,
                                    at::TensorOptions options) {
  const auto dtype = c10::typeMetaToScalarType(options.dtype());
  const auto bytes = rows * columns * static_cast<std::int64_t>(c10::elementSize(dtype));
  at::Tensor& kept = buffers_[static_cast<std::size_t>(transfer)];
  if (!kept.defined() || kept.numel() < bytes) kept = at::empty({bytes}, options.dtype(at::kByte));
  return kept.narrow(0, 0, bytes).view(dtype).view({rows, columns});
}

Exchange::PendingTransfer::PendingTransfer(Exchange& exchange, Transfer transfer,
                                           const LayerPlan& plan, const at::Tensor& received,
                                           Rows rows)
    : exchange_(exchange),
      transfer_(transfer),
      rows_(rows),
      layer_(plan.layer),
      send_rows_(goes_out(transfer) ? plan.send_rows : plan.receive_rows),
      receive_rows_(goes_out(transfer) ? plan.receive_rows : plan.send_rows),
      sent_(row_offsets(send_rows_)),
      received_(row_offsets(receive_rows_)),
      to_(received),
      works_(send_rows_.size()) {}

void Exchange::PendingTransfer::send(std::int64_t step, const at::Tensor& given) {
  const at::Tensor rows = given.detach().to(to_.scalar_type()).contiguous();
  if (rows_ == Rows::token_blocks) traffic().blocks += rows.size(0);
  traffic().bytes += rows.size(0) * row_bytes(rows);
  works_[step] = exchange_.group_.all_to_all_v(rows, send_rows_[step],
                                               to_.slice(0, received_[step], received_[step + 1]),
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
    if (exchange_.heartbeat_) {
      const char* name = kTransferNames[static_cast<std::size_t>(transfer_)];
      scope.emplace(*exchange_.heartbeat_, name, layer_);
    }
    works_[step]->wait();
  }
  works_[step].reset();
  traffic().seconds += data::seconds_since(start);
}

void Exchange::PendingTransfer::wait() {
  for (std::size_t step = 0; step < works_.size(); ++step) {
    if (works_[step]) wait(static_cast<std::int64_t>(step));
  }
}

}  // namespace laterna::dist
