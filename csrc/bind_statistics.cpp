// Binds ranks, rank correlations and counts of judgments.
#include "bind.h"

namespace bgs {

void bind_statistics(pybind11::module_&) {}

}  // namespace bgs
