// The CPU kernels for one instruction set; CMakeLists.txt holds the options that it is compiled with.
#define BGS_ISA avx2

#include "cpu/hybrid_loss_body.h"
#include "cpu/pairwise_distance_body.h"
