// Resuming a run from its newest intact checkpoint, whatever layout of ranks wrote it.
#pragma once

#include "data/image_set.h"
#include "dist/world.h"
#include "launch/training/run_folder.h"
#include "launch/training/trainer.h"

namespace laterna::launch {

/// Collective. Loads the newest intact checkpoint, if there is one, into the trainer and returns
/// the number of steps done, or 0. A damaged checkpoint is reported and set aside, and the one
/// before it is used. Throws CollectiveError on all ranks when all checkpoints are damaged, when a
/// rank does not see the checkpoint that rank 0 sees, when `images` are not those that the run was
/// trained with, or when their pixels on a host are damaged.
std::int64_t resume(const RunFolder& folder, const data::ImageSet& images, dist::World& world,
                    Trainer& trainer);

}  // namespace laterna::launch
