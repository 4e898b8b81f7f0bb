// Binds the hybrid loss on the CPU.
#include "bind.h"

namespace bgs {

void bind_hybrid_loss(pybind11::module_&) {}

}  // namespace bgs
