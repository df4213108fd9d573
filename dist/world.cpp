#include "dist/world.h"

#include <fmt/format.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <stdexcept>

#include "dist/local_communicator.h"
#include "dist/mpi_communicator.h"
#include "dist/mpi_work.h"

namespace laterna::dist {
namespace {

bool started_by_launcher() {
  for (const char* name : {"OMPI_COMM_WORLD_SIZE", "PMIX_RANK", "PMI_RANK", "PMI_SIZE"}) {
    if (std::getenv(name) != nullptr) return true;
  }
  return false;
}

// How many tasks the launcher says it started, 1 when it does not say. Under an mpirun that srun
// started the later names count its daemons, so mpirun's own name comes first.
int tasks_started() {
  for (const char* name : {"OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "SLURM_STEP_NUM_TASKS"}) {
    if (const char* value = std::getenv(name)) return std::atoi(value);
  }
  return 1;
}

std::string host_name() {
  char name[256] = "";
  gethostname(name, sizeof(name) - 1);
  return name;
}

}  // namespace

struct World::Mpi {
  MPI_Comm control = MPI_COMM_NULL;
  MPI_Comm reduction = MPI_COMM_NULL;
  MPI_Comm exchange = MPI_COMM_NULL;
  MPI_Comm holders = MPI_COMM_NULL;

  /// `handle` becomes the ranks of this color, in the world's order.
  std::unique_ptr<Communicator> split(MPI_Comm& handle, int color, int rank) const {
    if (handle != MPI_COMM_NULL) check_mpi(MPI_Comm_free(&handle), "MPI_Comm_free", rank);
    check_mpi(MPI_Comm_split(MPI_COMM_WORLD, color, rank, &handle), "MPI_Comm_split", rank);
    return std::make_unique<MpiCommunicator>(handle);
  }
};

World::World() : host_(host_name()) {
  if (started_by_launcher()) {
    join();
  } else {
    for (auto* mine : {&control_, &reduction_, &exchange_, &holders_}) {
      *mine = std::make_unique<LocalCommunicator>();
    }
  }
  // Tasks that do not find each other would each train alone, into the same run folder.
  if (size_ == 1 && tasks_started() > 1) {
    throw std::runtime_error(
        fmt::format("the launcher started {} tasks on this job, but MPI sees one rank: start them "
                    "with mpirun, or with srun --mpi=pmix",
                    tasks_started()));
  }
}

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
    throw std::runtime_error("this MPI was built without thread support (MPI_THREAD_SERIALIZED)");
  }
  MPI_Comm host = MPI_COMM_NULL;
  check_mpi(MPI_Comm_split_type(MPI_COMM_WORLD, MPI_COMM_TYPE_SHARED, rank_, MPI_INFO_NULL, &host),
            "MPI_Comm_split_type", rank_);
  check_mpi(MPI_Comm_rank(host, &local_rank_), "MPI_Comm_rank", rank_);
  check_mpi(MPI_Comm_size(host, &local_size_), "MPI_Comm_size", rank_);
  check_mpi(MPI_Comm_free(&host), "MPI_Comm_free", rank_);

  mpi_ = std::make_unique<Mpi>();
  control_ = mpi_->split(mpi_->control, 0, rank_);
  reduction_ = mpi_->split(mpi_->reduction, 0, rank_);
  exchange_ = mpi_->split(mpi_->exchange, rank_, rank_);
  holders_ = mpi_->split(mpi_->holders, 0, rank_);
}

void World::form_groups(std::int64_t expert, std::int64_t sides) {
  if (expert < 1 || size_ % expert != 0) {
    throw std::invalid_argument(fmt::format(
        "{} ranks do not make groups of {}; allowed: a divisor of the ranks", size_, expert));
  }
  if (!mpi_) return;
  const auto place = static_cast<int>(rank_ % expert);
  exchange_.reset();
  exchange_ = mpi_->split(mpi_->exchange, static_cast<int>(rank_ / expert), rank_);
  holders_.reset();
  holders_ = mpi_->split(mpi_->holders, static_cast<int>(place % sides), rank_);
}

void World::finalize() {
  control_.reset();
  reduction_.reset();
  exchange_.reset();
  holders_.reset();
  if (!mpi_) return;
  for (MPI_Comm* handle : {&mpi_->control, &mpi_->reduction, &mpi_->exchange, &mpi_->holders}) {
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
