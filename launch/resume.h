// Going on with a run: the newest checkpoint that is intact, of any layout of ranks.
#pragma once

#include "data/image_set.h"
#include "dist/world.h"
#include "launch/run_folder.h"
#include "launch/trainer.h"

namespace laterna::launch {

/// Collective: loads it into the trainer, where there is one, and returns the steps done, or 0. A
/// damaged checkpoint is reported and set aside, and the one before it is taken. Throws
/// CollectiveError on all ranks: when all are damaged, when a rank does not see what rank 0 sees,
/// when `images` are not those that the run was trained with, or when they are damaged.
std::int64_t resume(const RunFolder& folder, const data::ImageSet& images, dist::World& world,
                    Trainer& trainer);

}  // namespace laterna::launch
