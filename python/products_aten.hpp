// Products on a CPU by what torch carries: MKL through aten::mm, or oneDNN where that is faster. One matrix or a batch,
// any strides.
#pragma once
#include "core/block.hpp"
#include "core/dtype.hpp"

namespace laser::aten {

// c = a b.
template <typename T>
void multiply(Block<const T> a, Block<const T> b, Block<T> c);

// c = a b, b rounded to bfloat16.
template <typename T>
void multiply_half(Block<const BFloat16> a, Block<const T> b, Block<T> c);

// g = a^T a, exactly symmetric.
template <typename T>
void gram(Block<const T> a, Block<T> g);

}  // namespace laser::aten
