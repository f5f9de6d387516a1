// A host's cuBLAS for the emulated backend: the few products that csrc/cuda asks for, argument checks included.
#pragma once
#include "cuda/vendor.hpp"

namespace laser {

const Cublas& fake_cublas();

// The next `calls` products find no memory.
void refuse_products(int64_t calls);

// out[0]: the math mode of the last product, out[1]: that of now.
void math_modes(int64_t* out);

}  // namespace laser
