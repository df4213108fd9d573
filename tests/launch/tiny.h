// For tests: a valid configuration of a tiny run.
#pragma once

#include "launch/config.h"

namespace laterna::launch {

inline Config tiny(const Settings& more = {}) {
  Settings settings{"model.image_size=8", "model.patch=4",       "model.width=8",
                    "model.depth=2",      "model.heads=2",       "diffusion.steps=20",
                    "sampling.steps=20",  "data.path=somewhere", "checkpoint.keep=50"};
  settings.insert(settings.end(), more.begin(), more.end());
  return parse_config("", "test", settings);
}

}  // namespace laterna::launch
