// A host's cuBLAS for the emulated backend: the few products that csrc/cuda asks for, argument checks included.
#pragma once
#include "cuda/vendor.hpp"

namespace laser {

const Cublas& fake_cublas();

// The next `calls` products find no memory.
void refuse_products(int64_t calls);

}  // namespace laser
