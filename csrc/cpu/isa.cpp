#include "cpu/isa.h"

#include <algorithm>
#include <cstdlib>
#include <stdexcept>

namespace bgs::cpu {

namespace {

Isa widest() {
#if defined(BGS_X86)
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512vl")) {
    return Isa::kAvx512;
  }
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return Isa::kAvx2;
#endif
  return Isa::kBaseline;
}

Isa chosen() {
  const char* named = std::getenv("BGS_CPU_ISA");
  if (named == nullptr || *named == '\0') return widest();
  for (Isa each : {Isa::kBaseline, Isa::kAvx2, Isa::kAvx512}) {
    if (name_of(each) == named) return std::min(each, widest());
  }
  throw std::invalid_argument(std::string("BGS_CPU_ISA: expected baseline, avx2 or avx512, got ") + named);
}

}  // namespace

Isa isa() {
  static const Isa here = chosen();
  return here;
}

std::string name_of(Isa isa) {
  switch (isa) {
    case Isa::kAvx512:
      return "avx512";
    case Isa::kAvx2:
      return "avx2";
    default:
      return "baseline";
  }
}

}  // namespace bgs::cpu
