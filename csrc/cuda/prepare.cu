#include <type_traits>

#include "cuda/elementwise.cuh"
#include "cuda/prepare.cuh"

namespace laser {
namespace {

int64_t chunks_of(int64_t rows) { return (rows + kPrepareRows - 1) / kPrepareRows; }

template <typename E>
Scaled<E> scaled(const Weight& w, int64_t first, const Prepared* prepared) {
  return {static_cast<const E*>(w.data) + first * w.stride, w.stride, w.row_stride, prepared + first};
}

}  // namespace

int64_t prepare_partials(int64_t rows, int64_t count) { return 2 * count * chunks_of(rows); }

cudaError_t prepare(const Weight& w, int safe, Prepared* out, double* partial, cudaStream_t stream) {
  const int64_t chunks = chunks_of(w.rows);
  const dim3 grid(unsigned(w.count * chunks)), one(unsigned(w.count));
  return with_dtype(w.dtype, [&](auto element) {
    using E = decltype(element);
    const E* data = static_cast<const E*>(w.data);
    // Squares of all but float64 weights fit a double: their sum is scaled afterwards.
    const bool fits = !std::is_same_v<E, double>;
    const Prepared* none = nullptr;
    cudaError_t status = launch(prepare_kernel<E>, grid, dim3(kPrepareThreads), 0, stream, data, w.rows, w.cols,
                                w.stride, w.row_stride, chunks, none, partial);
    if (status == cudaSuccess) {
      status = launch(prepare_finish_kernel<false>, one, dim3(32), 0, stream, partial, chunks, safe, fits, out);
    }
    if (!fits && status == cudaSuccess) {
      status = launch(prepare_kernel<E>, grid, dim3(kPrepareThreads), 0, stream, data, w.rows, w.cols, w.stride,
                      w.row_stride, chunks, out, partial);
      if (status == cudaSuccess) {
        status = launch(prepare_finish_kernel<true>, one, dim3(32), 0, stream, partial, chunks, safe, false, out);
      }
    }
    return status;
  });
}

template <typename T>
cudaError_t load(const Weight& w, int64_t first, const Prepared* prepared, Block<T> out, cudaStream_t stream) {
  return with_dtype(w.dtype, [&](auto element) {
    using E = decltype(element);
    const Load<E, T> f{scaled<E>(w, first, prepared), out};
    return elementwise({nullptr, int(out.count)}, out.rows, out.cols, f, stream);
  });
}

cudaError_t load_slices(const Weight& w, int64_t first, const Prepared* prepared, Block<BFloat16> out, int slices,
                        int64_t part, cudaStream_t stream) {
  return with_dtype(w.dtype, [&](auto element) {
    using E = decltype(element);
    const LoadSlices<E> f{scaled<E>(w, first, prepared), out, slices, part};
    return elementwise({nullptr, int(out.count)}, out.rows, out.cols, f, stream);
  });
}

template cudaError_t load(const Weight&, int64_t, const Prepared*, Block<float>, cudaStream_t);
template cudaError_t load(const Weight&, int64_t, const Prepared*, Block<double>, cudaStream_t);

}  // namespace laser
