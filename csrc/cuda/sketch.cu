#include <algorithm>

#include "cuda/sketch.cuh"
#include "cuda/sketch.hpp"

namespace laser {

template <typename T>
cudaError_t sketch(Block<T> q, uint64_t seed, const int64_t* keys, cudaStream_t stream) {
  const int64_t chunks = (q.rows + kSketchRows - 1) / kSketchRows;
  for (int64_t first = 0; first < q.count; first += kSketchKeys) {
    const int64_t count = std::min<int64_t>(kSketchKeys, q.count - first);
    SketchKeys some{};
    std::copy_n(keys + first, count, some.of);
    const cudaError_t status = launch(sketch_kernel<T>, dim3(unsigned(count * chunks)), dim3(kSketchThreads), 0, stream,
                                      q.batch(first, count), seed, chunks, some);
    if (status != cudaSuccess) {
      return status;
    }
  }
  return cudaSuccess;
}

template cudaError_t sketch(Block<float>, uint64_t, const int64_t*, cudaStream_t);
template cudaError_t sketch(Block<double>, uint64_t, const int64_t*, cudaStream_t);

}  // namespace laser
