// The instruction sets that the kernels are compiled for, and a way to change the one in use, so
// that one process can test and measure all of them.
#pragma once

#include <string>
#include <vector>

namespace laterna::kernels {

/// Returns the instruction sets that this build has kernels for, best first.
std::vector<std::string> instruction_sets();

/// Makes kernels() return those of `set` from now on; call it only while no kernel runs. Returns
/// false, and changes nothing, where the processor or the build lacks the set.
bool use_instruction_set(const std::string& set);

}  // namespace laterna::kernels
