#include "core/philox.hpp"
#include "cpu/kernels.hpp"

namespace laser::cpu {

template <typename T>
void sketch(Block<T> q, uint64_t seed, int64_t key) {
  const SketchKey k = sketch_key(seed, uint64_t(key));
  for (int64_t i = 0; i < q.rows; ++i) {
    for (int64_t j = 0; j < q.cols; j += 2) {
      const SketchPair pair = sketch_pair(k, i, j / 2);
      q.at(0, i, j) = T(pair.even);
      if (j + 1 < q.cols) {
        q.at(0, i, j + 1) = T(pair.odd);
      }
    }
  }
}

template void sketch(Block<float>, uint64_t, int64_t);
template void sketch(Block<double>, uint64_t, int64_t);

}  // namespace laser::cpu
