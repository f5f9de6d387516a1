#include "core/dtype.hpp"
#include "core/philox.hpp"
#include "cpu/kernels.hpp"

namespace laser::cpu {
namespace {

template <typename T>
LASER_SIMD void sketch_row(SketchKey key, int64_t row, int64_t cols, T* out) {
  for (int64_t j = 0; j < cols; j += 2) {
    const SketchPair pair = sketch_pair(key, row, j / 2);
    out[j] = T(pair.even);
    if (j + 1 < cols) {
      out[j + 1] = T(pair.odd);
    }
  }
}

}  // namespace

template <typename T>
void sketch(Block<T> q, uint64_t seed, int64_t key) {
  const SketchKey k = sketch_key(seed, uint64_t(key));
  for (int64_t i = 0; i < q.rows; ++i) {
    sketch_row(k, i, q.cols, q.data + i * q.row_stride);
  }
}

template void sketch(Block<float>, uint64_t, int64_t);
template void sketch(Block<double>, uint64_t, int64_t);

}  // namespace laser::cpu
