// What the tests in this folder share: every test runs on all ranks of one World at the same time.
#pragma once

#include "dist/world.h"

namespace laterna::tests {

/// The ranks that run this test program. Lives from before the first test to after the last.
dist::World& world();

}  // namespace laterna::tests
