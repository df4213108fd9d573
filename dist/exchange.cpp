#include "dist/exchange.h"

#include <ATen/ATen.h>

#include <chrono>
#include <optional>

#include "data/host.h"
#include "dist/bit_packing.h"
#include "dist/collective_arguments.h"

namespace laterna::dist {
namespace {

constexpr std::array kWaits = {"exchange of spikes", "exchange of sums",
                               "exchange of sum gradients", "exchange of spike gradients"};

std::size_t index_of(Leg leg) { return static_cast<std::size_t>(leg); }

}  // namespace

at::Tensor Exchange::buffer(Leg leg, Use use, std::int64_t rows, std::int64_t columns,
                            at::ScalarType dtype, at::Device device) {
  const auto bytes = rows * columns * static_cast<std::int64_t>(c10::elementSize(dtype));
  at::Tensor& kept = buffers_[3 * index_of(leg) + static_cast<std::size_t>(use)];
  if (!kept.defined() || kept.numel() < bytes) {
    kept = at::empty({bytes}, at::TensorOptions().dtype(at::kByte).device(device));
  }
  return kept.narrow(0, 0, bytes).view(dtype).view({rows, columns});
}

at::Tensor Exchange::room(Leg leg, std::int64_t rows, std::int64_t columns,
                          const at::Tensor& like) {
  return buffer(leg, Use::arrived, rows, columns, like.scalar_type(), like.device());
}

Exchange::Flight Exchange::send_out(Leg leg, const LayerPlan& plan, const at::Tensor& blocks,
                                    const at::Tensor& received) {
  const bool packed = blocks.scalar_type() == at::kByte;
  const Wire wire = packed ? Wire::plain : leg == Leg::spikes ? Wire::bits : dense_wire();
  Flight flight(*this, leg, wire, plan, /*back=*/false, received);
  if (wire == Wire::plain) {  // selected rows need a place to leave from
    flight.out_ = buffer(leg, Use::sending, flight.sent_.back(), blocks.size(1),
                         blocks.scalar_type(), blocks.device());
  }
  const at::Tensor numbers = at::tensor(plan.sent, at::kLong).to(blocks.device());
  for (std::int64_t t = 0; t < std::ssize(plan.send_rows); ++t) {
    flight.send_selected(t, blocks, numbers);
  }
  return flight;
}

Exchange::Flight Exchange::begin_back(Leg leg, const LayerPlan& plan, const at::Tensor& returned) {
  return {*this, leg, dense_wire(), plan, /*back=*/true, returned};
}

Exchange::Flight Exchange::send_back(Leg leg, const LayerPlan& plan, const at::Tensor& blocks,
                                     const at::Tensor& returned) {
  Flight flight = begin_back(leg, plan, returned);
  for (std::int64_t t = 0; t < std::ssize(plan.receive_rows); ++t) {
    flight.send(t, blocks.slice(0, flight.sent_[t], flight.sent_[t + 1]));
  }
  return flight;
}

Exchange::Flight Exchange::send_scalars_back(const LayerPlan& plan, const at::Tensor& scalars,
                                             const at::Tensor& returned) {
  Flight flight(*this, Leg::spike_gradients, Wire::plain, plan, /*back=*/true, returned);
  const std::int64_t blocks = traffic_[index_of(Leg::spike_gradients)].blocks;
  for (std::int64_t t = 0; t < std::ssize(plan.receive_rows); ++t) {
    flight.send(t, scalars.slice(0, flight.sent_[t], flight.sent_[t + 1]));
  }
  traffic_[index_of(Leg::spike_gradients)].blocks = blocks;  // scalars are none
  return flight;
}

Exchange::Flight::Flight(Exchange& exchange, Leg leg, Wire wire, const LayerPlan& plan, bool back,
                         const at::Tensor& to)
    : exchange_(exchange),
      leg_(leg),
      wire_(wire),
      layer_(plan.layer),
      send_rows_(back ? plan.receive_rows : plan.send_rows),
      receive_rows_(back ? plan.send_rows : plan.receive_rows),
      sent_(first_rows(send_rows_)),
      received_(first_rows(receive_rows_)),
      to_(to),
      works_(send_rows_.size()) {
  if (wire == Wire::plain) return;
  const bool bits = wire == Wire::bits;
  const auto dtype = bits ? at::kByte : at::kBFloat16;
  const std::int64_t columns = bits ? packed_bytes(to.size(1)) : to.size(1);
  out_ = exchange.buffer(leg, Use::sending, sent_.back(), columns, dtype, to.device());
  in_ = exchange.buffer(leg, Use::receiving, received_.back(), columns, dtype, to.device());
}

at::Tensor Exchange::Flight::outgoing(std::int64_t step) {
  return out_.defined() ? out_.slice(0, sent_[step], sent_[step + 1]) : at::Tensor();
}

void Exchange::Flight::send_selected(std::int64_t step, const at::Tensor& blocks,
                                     const at::Tensor& numbers) {
  const at::Tensor mine = numbers.slice(0, sent_[step], sent_[step + 1]);
  at::Tensor leaving = outgoing(step);
  switch (wire_) {
    case Wire::bits:
      pack_rows(blocks, mine, leaving);
      break;
    case Wire::bfloat16:
      leaving.copy_(blocks.index_select(0, mine));
      break;
    case Wire::plain:
      at::index_select_out(leaving, blocks, 0, mine);
      break;
  }
  post(step, leaving);
}

void Exchange::Flight::send(std::int64_t step, const at::Tensor& rows) {
  at::Tensor leaving = outgoing(step);
  if (leaving.defined()) leaving.copy_(rows);
  post(step, leaving.defined() ? leaving : rows);
}

void Exchange::Flight::post(std::int64_t step, const at::Tensor& rows) {
  Traffic& traffic = exchange_.traffic_[index_of(leg_)];
  traffic.blocks += rows.size(0);
  traffic.bytes += rows.size(0) * row_bytes(rows);
  const at::Tensor& in = in_.defined() ? in_ : to_;
  works_[step] = exchange_.group_.all_to_all_v(rows, send_rows_[step],
                                               in.slice(0, received_[step], received_[step + 1]),
                                               receive_rows_[step]);
}

void Exchange::Flight::poll() {
  for (const auto& work : works_) {
    if (work) work->test();
  }
}

void Exchange::Flight::wait(std::int64_t step) {
  const auto start = std::chrono::steady_clock::now();
  {
    std::optional<Activity::Scope> scope;
    if (exchange_.activity_) scope.emplace(*exchange_.activity_, kWaits[index_of(leg_)], layer_);
    works_[step]->wait();
  }
  works_[step].reset();
  exchange_.traffic_[index_of(leg_)].seconds += data::seconds_since(start);
  if (!in_.defined()) return;
  const at::Tensor arrived = in_.slice(0, received_[step], received_[step + 1]);
  at::Tensor place = to_.slice(0, received_[step], received_[step + 1]);
  wire_ == Wire::bits ? unpack_rows(arrived, place) : static_cast<void>(place.copy_(arrived));
}

void Exchange::Flight::wait() {
  for (std::size_t step = 0; step < works_.size(); ++step) {
    if (works_[step]) wait(static_cast<std::int64_t>(step));
  }
}

}  // namespace laterna::dist
