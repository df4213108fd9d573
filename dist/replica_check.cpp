#include "dist/replica_check.h"

#include <fmt/format.h>

#include <bit>
#include <stdexcept>

#include "dist/agreement.h"
#include "dist/content_hash.h"

namespace laterna::dist {
namespace {

std::int64_t hash_of(const at::Tensor& tensor) {
  const at::Tensor host = tensor.detach().cpu().contiguous();
  const auto* bytes = static_cast<const std::byte*>(host.const_data_ptr());
  return std::bit_cast<std::int64_t>(content_hash({bytes, host.nbytes()}));
}

// Returns the ranks whose value is not the most common one; among equally common values the lowest
// rank's counts as the most common.
std::vector<int> minority(const std::vector<std::int64_t>& values) {
  std::int64_t usual = values.front();
  std::ptrdiff_t most = 0;
  for (const std::int64_t value : values) {
    const std::ptrdiff_t count = std::count(values.begin(), values.end(), value);
    if (count > most) {
      most = count;
      usual = value;
    }
  }
  std::vector<int> ranks;
  for (std::size_t rank = 0; rank < values.size(); ++rank) {
    if (values[rank] != usual) ranks.push_back(static_cast<int>(rank));
  }
  return ranks;
}

}  // namespace

std::optional<Divergence> find_divergence(Communicator& control, std::span<const std::string> names,
                                          std::span<const at::Tensor> tensors) {
  if (names.size() != tensors.size()) {
    throw std::invalid_argument(
        fmt::format("find_divergence: {} names for {} tensors: the numbers must be equal",
                    names.size(), tensors.size()));
  }
  const auto count = static_cast<std::int64_t>(names.size());
  const at::Tensor mine = at::empty({count}, at::kLong);
  for (std::int64_t i = 0; i < count; ++i) {
    mine.mutable_data_ptr<std::int64_t>()[i] = hash_of(tensors[i]);
  }
  const at::Tensor all = gather_facts(control, mine);

  const auto hashes = all.accessor<std::int64_t, 2>();
  for (std::int64_t i = 0; i < count; ++i) {
    std::vector<std::int64_t> values;
    for (int rank = 0; rank < control.size(); ++rank) values.push_back(hashes[rank][i]);
    std::vector<int> ranks = minority(values);
    if (!ranks.empty()) return Divergence{names[i], std::move(ranks)};
  }
  return std::nullopt;
}

}  // namespace laterna::dist
