#include "dist/world.h"

#include <ATen/ATen.h>
#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <optional>
#include <stdexcept>

#include "data/host.h"
#include "dist/agreement.h"
#include "dist/comm/local_communicator.h"
#include "dist/comm/mpi_communicator.h"
#include "dist/comm/mpi_work.h"

namespace laterna::dist {
namespace {

bool started_by_launcher() {
  for (const char* name : {"OMPI_COMM_WORLD_SIZE", "PMIX_RANK", "PMI_RANK", "PMI_SIZE"}) {
    if (std::getenv(name) != nullptr) return true;
  }
  return false;
}

// Returns the number of tasks that the launcher says it started, or 1 when it does not say. When
// srun starts mpirun, the PMI and Slurm variables count mpirun's daemons, so mpirun's variable
// comes first.
int tasks_started() {
  for (const char* name : {"OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "SLURM_STEP_NUM_TASKS"}) {
    if (const char* value = std::getenv(name)) return std::atoi(value);
  }
  return 1;
}

}  // namespace

std::string mpi_version() {
  char text[MPI_MAX_LIBRARY_VERSION_STRING];
  int length = 0;
  MPI_Get_library_version(text, &length);
  const std::string whole(text, static_cast<std::size_t>(length));
  return whole.substr(0, whole.find_first_of(",\n"));
}

struct World::Mpi {
  MPI_Comm control = MPI_COMM_NULL;
  MPI_Comm reduction = MPI_COMM_NULL;
  MPI_Comm exchange = MPI_COMM_NULL;
  MPI_Comm replica_group = MPI_COMM_NULL;

  /// Replaces `handle` by a communicator of the ranks of this color, in the world's order.
  static std::unique_ptr<Communicator> split(MPI_Comm& handle, int color, int rank,
                                             Heartbeat& heartbeat) {
    if (handle != MPI_COMM_NULL) check_mpi(MPI_Comm_free(&handle), "MPI_Comm_free", rank);
    check_mpi(MPI_Comm_split(MPI_COMM_WORLD, color, rank, &handle), "MPI_Comm_split", rank);
    return std::make_unique<MpiCommunicator>(handle, &heartbeat);
  }
};

namespace {

/// Returns a communicator of the same ranks for tensors of `device`; MPI broadcasts NCCL's id.
std::unique_ptr<Communicator> for_device(std::unique_ptr<Communicator> by_mpi,
                                         const Device& device) {
  if (!device.is_cuda()) return by_mpi;
  if (by_mpi->size() == 1) return std::make_unique<LocalCommunicator>();
  const at::Tensor id = at::zeros({std::int64_t{std::tuple_size_v<NcclId>}}, at::kByte);
  if (by_mpi->rank() == 0) {
    const NcclId mine = device.cuda()->make_nccl_id();
    std::copy(mine.begin(), mine.end(), id.mutable_data_ptr<std::uint8_t>());
  }
  by_mpi->broadcast(id, 0)->wait();
  NcclId shared;
  std::copy_n(id.const_data_ptr<std::uint8_t>(), shared.size(), shared.begin());
  return device.cuda()->join_nccl(shared, by_mpi->rank(), by_mpi->size());
}

}  // namespace

World::World() : host_(data::host_name()) {
  if (started_by_launcher()) {
    join();
  } else {
    for (auto* mine : {&control_, &reduction_, &exchange_, &replica_group_}) {
      *mine = std::make_unique<LocalCommunicator>();
    }
  }
}

int World::tasks() const { return size_ == 1 ? tasks_started() : size_; }

World::~World() = default;

void World::join() {
  int provided = MPI_THREAD_SINGLE;
  check_mpi(MPI_Init_thread(nullptr, nullptr, MPI_THREAD_SERIALIZED, &provided), "MPI_Init_thread",
            0);
  check_mpi(MPI_Comm_set_errhandler(MPI_COMM_WORLD, MPI_ERRORS_RETURN), "MPI_Comm_set_errhandler",
            0);
  check_mpi(MPI_Comm_rank(MPI_COMM_WORLD, &rank_), "MPI_Comm_rank", 0);
  check_mpi(MPI_Comm_size(MPI_COMM_WORLD, &size_), "MPI_Comm_size", rank_);
  if (provided < MPI_THREAD_SERIALIZED) {
    throw std::runtime_error(
        "this MPI was built without thread support: MPI_THREAD_SERIALIZED is needed");
  }
  MPI_Comm host = MPI_COMM_NULL;
  check_mpi(MPI_Comm_split_type(MPI_COMM_WORLD, MPI_COMM_TYPE_SHARED, rank_, MPI_INFO_NULL, &host),
            "MPI_Comm_split_type", rank_);
  check_mpi(MPI_Comm_rank(host, &local_rank_), "MPI_Comm_rank", rank_);
  check_mpi(MPI_Comm_size(host, &local_size_), "MPI_Comm_size", rank_);
  check_mpi(MPI_Comm_free(&host), "MPI_Comm_free", rank_);

  mpi_ = std::make_unique<Mpi>();
  control_ = Mpi::split(mpi_->control, 0, rank_, heartbeat_);
  reduction_ = Mpi::split(mpi_->reduction, 0, rank_, heartbeat_);
  exchange_ = Mpi::split(mpi_->exchange, rank_, rank_, heartbeat_);
  replica_group_ = Mpi::split(mpi_->replica_group, 0, rank_, heartbeat_);
}

void World::open_device() {
  std::optional<Failure> failure;
  try {
    device_ = Device::open(local_rank_);
  } catch (const std::exception& error) {
    failure = Failure{1, error.what()};
  }
  if (const auto failed = agree_on_failure(*control_, failure)) {
    throw std::runtime_error(fmt::format("rank {}: {}", failed->rank, failed->message));
  }
  const at::Tensor kinds =
      gather_facts(*control_, at::full({1}, std::int64_t{device_.is_cuda()}, at::kLong));
  if (kinds.min().item<std::int64_t>() != kinds.max().item<std::int64_t>()) {
    const auto without = kinds.flatten().argmin().item<std::int64_t>();
    throw std::runtime_error(fmt::format(
        "rank {} has no GPU but other ranks have one: start all ranks on hosts of the same "
        "kind, or all with CUDA_VISIBLE_DEVICES= (empty) to compute on the CPU",
        without));
  }
  // NCCL rejects two ranks on one GPU as a mistake unless their host ids differ.
  if (device_.is_cuda() && local_size_ > device_.gpus()) {
    setenv("NCCL_HOSTID", fmt::format("{}-{}", host_, local_rank_).c_str(), 0);
  }
}

void World::form_groups(std::int64_t expert, std::int64_t shards) {
  if (expert < 1 || size_ % expert != 0) {
    throw std::invalid_argument(
        fmt::format("{} ranks cannot form groups of {}; allowed: a divisor of the number of ranks",
                    size_, expert));
  }
  if (!mpi_ || (expert == expert_ && shards == shards_)) return;
  expert_ = expert, shards_ = shards;
  const auto place = static_cast<int>(rank_ % expert);
  const auto form = [&](std::unique_ptr<Communicator>& mine, MPI_Comm& handle, int color) {
    mine.reset();
    mine = for_device(Mpi::split(handle, color, rank_, heartbeat_), device_);
  };
  form(reduction_, mpi_->reduction, 0);
  form(exchange_, mpi_->exchange, static_cast<int>(rank_ / expert));
  form(replica_group_, mpi_->replica_group, static_cast<int>(place % shards));
}

void World::finalize() {
  heartbeat_.end();
  control_.reset();
  reduction_.reset();
  exchange_.reset();
  replica_group_.reset();
  if (!mpi_) return;
  for (MPI_Comm* handle :
       {&mpi_->control, &mpi_->reduction, &mpi_->exchange, &mpi_->replica_group}) {
    check_mpi(MPI_Comm_free(handle), "MPI_Comm_free", rank_);
  }
  mpi_.reset();
  check_mpi(MPI_Finalize(), "MPI_Finalize", rank_);
}

void World::abort(int status) {
  std::fflush(nullptr);
  if (mpi_) MPI_Abort(MPI_COMM_WORLD, status);
  std::_Exit(status);
}

}  // namespace laterna::dist
