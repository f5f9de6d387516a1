// How a kernel addresses the selected matrices of a batch.
#pragma once
#include <cstdint>

#include "core/portable.hpp"

namespace laser {

// The matrices that a launch works on: number s = 0 .. count - 1 is matrix index[s] of the batch, or s itself where
// index is null. `index` lies in device memory.
struct Selection {
  const int* index;
  int count;

  LASER_HOST_DEVICE int64_t operator[](int s) const { return index ? index[s] : s; }
};

}  // namespace laser
