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
};

World::World() : host_(host_name()) {
  if (started_by_launcher()) {
    join();
  } else {
    control_ = std::make_unique<LocalCommunicator>();
    reduction_ = std::make_unique<LocalCommunicator>();
    exchange_ = std::make_unique<LocalCommunicator>();
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
  const auto duplicate = [this](MPI_Comm& handle) {
    check_mpi(MPI_Comm_dup(MPI_COMM_WORLD, &handle), "MPI_Comm_dup", rank_);
    return std::make_unique<MpiCommunicator>(handle);
  };
  control_ = duplicate(mpi_->control);
  reduction_ = duplicate(mpi_->reduction);
  exchange_ = duplicate(mpi_->exchange);
}

void World::finalize() {
  control_.reset();
  reduction_.reset();
  exchange_.reset();
  if (!mpi_) return;
  for (MPI_Comm* handle : {&mpi_->control, &mpi_->reduction, &mpi_->exchange}) {
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
