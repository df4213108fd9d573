#include "dist/agreement.h"

#include <bit>
#include <cstring>

#include "dist/content_hash.h"

namespace laterna::dist {
namespace {

// Gathers a row of a few facts from every rank: [size, facts] int64.
at::Tensor share(Communicator& control, std::initializer_list<std::int64_t> facts) {
  const at::Tensor mine = at::empty({static_cast<std::int64_t>(facts.size())}, at::kLong);
  std::copy(facts.begin(), facts.end(), mine.mutable_data_ptr<std::int64_t>());
  return gather_facts(control, mine);
}

}  // namespace

at::Tensor gather_facts(Communicator& ranks, const at::Tensor& mine) {
  const at::Tensor there = mine.to(ranks.device());
  const at::Tensor all = at::empty({ranks.size(), mine.size(0)}, there.options());
  ranks.all_gather(there, all)->wait();
  return all.cpu();
}

std::optional<RankFailure> agree_on_failure(Communicator& control,
                                            const std::optional<Failure>& mine) {
  const std::int64_t length = mine ? static_cast<std::int64_t>(mine->message.size()) : 0;
  const at::Tensor all = share(control, {mine.has_value(), mine ? mine->status : 0, length});
  const auto facts = all.accessor<std::int64_t, 2>();

  RankFailure failure{.rank = -1, .status = 0, .message = {}, .ranks_failed = 0};
  for (int rank = 0; rank < control.size(); ++rank) {
    if (facts[rank][0] == 0) continue;
    if (failure.ranks_failed++ > 0) continue;
    failure.rank = rank;
    failure.status = static_cast<int>(facts[rank][1]);
    failure.message.resize(static_cast<std::size_t>(facts[rank][2]));
  }
  if (failure.ranks_failed == 0) return std::nullopt;

  // The text is sent only in this rare case.
  const at::Tensor text = at::empty({std::ssize(failure.message)}, at::kByte);
  const std::size_t bytes = failure.message.size();
  if (control.rank() == failure.rank) {
    std::copy_n(mine->message.data(), bytes, text.mutable_data_ptr<std::uint8_t>());
  }
  control.broadcast(text, failure.rank)->wait();
  std::copy_n(text.const_data_ptr<std::uint8_t>(), bytes, failure.message.data());
  return failure;
}

std::vector<int> ranks_that_differ(Communicator& control, std::string_view text) {
  const std::uint64_t hash = content_hash(std::as_bytes(std::span(text)));
  const at::Tensor all =
      share(control, {static_cast<std::int64_t>(text.size()), std::bit_cast<std::int64_t>(hash)});
  const auto facts = all.accessor<std::int64_t, 2>();
  std::vector<int> ranks;
  for (int rank = 1; rank < control.size(); ++rank) {
    if (facts[rank][0] != facts[0][0] || facts[rank][1] != facts[0][1]) ranks.push_back(rank);
  }
  return ranks;
}

}  // namespace laterna::dist
