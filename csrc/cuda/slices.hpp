// A number, or a block of them, as a sum of bfloat16 numbers: each slice holds the next 8 significant bits, so that one
// is a bfloat16 weight, two hold a float16 one and three a float32 one. Products of slices are exact; tensor cores add
// them up in float32.
#pragma once
#include "core/block.hpp"
#include "core/dtype.hpp"

namespace laser {

struct Slices {
  Block<const BFloat16> first;
  int64_t part;  // elements from one slice to the next

  Block<const BFloat16> operator[](int k) const {
    Block<const BFloat16> some = first;
    some.data += k * part;
    return some;
  }
  Slices transposed() const { return {first.transposed(), part}; }
};

// to[k * part], k = 0 .. slices - 1: the slices of x.
LASER_HOST_DEVICE inline void cut(float x, int slices, BFloat16* to, int64_t part) {
  for (int k = 0; k < slices; ++k) {
    BFloat16 leading;
    narrow(x, leading);
    to[k * part] = leading;
    x -= widen(leading);
  }
}

}  // namespace laser
