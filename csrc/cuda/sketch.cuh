// Work:    one block per kSketchRows rows of a matrix; a thread makes two neighbouring entries from one Philox call.
// Memory:  n l sizeof(T) bytes written. Ten rounds of Philox are about 60 integer operations for two entries, which
//          bounds it: 8 bytes per 60 operations.
#pragma once
#include "core/block.hpp"
#include "core/philox.hpp"
#include "cuda/portable.cuh"

namespace laser {

constexpr int kSketchRows = 16;
constexpr int kSketchThreads = 256;

// Keys of so many matrices go with one launch; a kernel takes 4 KiB of parameters.
constexpr int kSketchKeys = 256;

struct SketchKeys {
  int64_t of[kSketchKeys];
};

template <typename T>
__global__ void __launch_bounds__(kSketchThreads) sketch_kernel(Block<T> q,  // (count, n, l) row-major
                                                                uint64_t seed, int64_t chunks, const SketchKeys keys) {
  const int64_t b = blockIdx.x / chunks, first = int64_t(blockIdx.x % chunks) * kSketchRows;
  const SketchKey key = sketch_key(seed, uint64_t(keys.of[b]));
  const int64_t pairs = (q.cols + 1) / 2, rows = q.rows - first < kSketchRows ? q.rows - first : kSketchRows;
  for (int64_t e = threadIdx.x; e < rows * pairs; e += kSketchThreads) {
    const int64_t i = first + e / pairs, j = e % pairs;
    const SketchPair pair = sketch_pair(key, i, j);
    q.at(b, i, 2 * j) = T(pair.even);
    if (2 * j + 1 < q.cols) {
      q.at(b, i, 2 * j + 1) = T(pair.odd);
    }
  }
}

}  // namespace laser
