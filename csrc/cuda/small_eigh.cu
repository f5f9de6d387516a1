#include <limits>

#include "cuda/small_eigh.cuh"
#include "cuda/small_eigh.hpp"

namespace laser {

template <typename T>
int64_t jacobi_limit(size_t shared_bytes) {
  int64_t l = 0;
  while (jacobi_bytes<T>(l + 1) <= shared_bytes) {
    ++l;
  }
  return l;
}

template <typename T>
cudaError_t small_eigh(Block<const T> h, Block<T> w, double* theta, Selection sel, cudaStream_t stream) {
  return launch(small_eigh_kernel<T>, dim3(sel.count), dim3(kJacobiThreads), jacobi_bytes<T>(h.cols), stream, h, w,
                theta, std::numeric_limits<T>::epsilon(), sel);
}

template int64_t jacobi_limit<float>(size_t);
template int64_t jacobi_limit<double>(size_t);
template cudaError_t small_eigh(Block<const float>, Block<float>, double*, Selection, cudaStream_t);
template cudaError_t small_eigh(Block<const double>, Block<double>, double*, Selection, cudaStream_t);

}  // namespace laser
