// Which of the builds for several instruction sets this processor runs.
#pragma once

#include <string>

namespace bgs::cpu {

enum class Isa { kBaseline, kAvx2, kAvx512 };

// The widest instruction set that this processor has, or the one that BGS_CPU_ISA names ("baseline", "avx2", "avx512")
// if it is narrower. Read once.
Isa isa();

std::string name_of(Isa isa);

}  // namespace bgs::cpu
