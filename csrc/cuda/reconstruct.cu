#include <type_traits>

#include "cuda/reconstruct.cuh"
#include "cuda/reconstruct.hpp"

namespace laser {
namespace {

int64_t parts(int64_t n, int64_t size) { return (n + size - 1) / size; }

// Of the factors, in bfloat16: what 16-bit results can tell apart, or all of a float32.
int slices_for(Dtype dtype) { return dtype == Dtype::kFloat32 || dtype == Dtype::kFloat64 ? 3 : 2; }

template <typename T>
int64_t tile_side() {
  return std::is_same_v<T, double> ? kWideTile : kTile;
}

template <typename T>
int64_t tiles_of(const Weight& w) {
  return parts(w.rows, tile_side<T>()) * parts(w.cols, tile_side<T>());
}

int64_t padded_rank(int64_t rank, int slices) {
  const int64_t step = slices == 2 ? kStepOf<2> : kStepOf<3>;
  return parts(rank, step) * step;
}

template <typename E>
Target<E> target_of(const Weight& w, const Weight& out, const int* exponent, double* partial) {
  return {static_cast<const E*>(w.data),
          static_cast<E*>(const_cast<void*>(out.data)),
          w.rows,
          w.cols,
          w.stride,
          w.row_stride,
          out.stride,
          out.row_stride,
          exponent,
          partial};
}

template <int kSlices, typename E>
cudaError_t by_tensor_cores(Block<const float> left, Block<const float> right, const Target<E>& target, void* scratch,
                            int64_t tiles, Selection sel, cudaStream_t stream) {
  const int64_t padded = padded_rank(left.cols, kSlices);
  BFloat16* lefts = static_cast<BFloat16*>(scratch);
  BFloat16* rights = lefts + kSlices * left.count * left.rows * padded;
  cudaError_t status = elementwise(sel, left.rows, padded, SlicePadded<kSlices>{left, lefts, padded}, stream);
  if (status == cudaSuccess) {
    status = elementwise(sel, right.rows, padded, SlicePadded<kSlices>{right, rights, padded}, stream);
  }
  return status != cudaSuccess ? status
                               : launch(reconstruct_mma_kernel<kSlices, E>, dim3(unsigned(sel.count * tiles)),
                                        dim3(kReconstructThreads), reconstruct_shared<kSlices>(), stream, lefts, rights,
                                        left.count, padded, parts(target.rows, kTile), tiles, target, sel);
}

}  // namespace

template <typename T>
int64_t reconstruct_scratch(const Weight& w, int64_t rank) {
  const int slices = slices_for(w.dtype);
  const int64_t factors = std::is_same_v<T, double> ? 0 : slices * (w.rows + w.cols) * padded_rank(rank, slices);
  return w.count * (2 * tiles_of<T>(w) * int64_t(sizeof(double)) + factors * int64_t(sizeof(BFloat16)));
}

template <typename T>
cudaError_t reconstruct(Block<const T> left, Block<const T> right, const int* exponent, const Weight& w,
                        const Weight& out, Selection sel, double* residual2, void* scratch, cudaStream_t stream) {
  const int64_t tiles = tiles_of<T>(w);
  double* partial = static_cast<double*>(scratch);
  void* rest = partial + 2 * w.count * tiles;
  const cudaError_t status = with_dtype(w.dtype, [&](auto element) {
    using E = decltype(element);
    const Target<E> target = target_of<E>(w, out, exponent, partial);
    if constexpr (std::is_same_v<T, double>) {
      return launch(reconstruct_wide_kernel<E>, dim3(unsigned(sel.count * tiles)), dim3(kReconstructThreads), 0, stream,
                    left, right, parts(w.rows, kWideTile), tiles, target, sel);
    } else {
      constexpr int kSlices = sizeof(E) == 2 ? 2 : 3;
      return by_tensor_cores<kSlices>(left, right, target, rest, tiles, sel, stream);
    }
  });
  return status != cudaSuccess ? status
                               : launch(add_tiles_kernel, dim3(sel.count), dim3(kReconstructThreads), 0, stream,
                                        partial, tiles, residual2, sel);
}

template int64_t reconstruct_scratch<float>(const Weight&, int64_t);
template int64_t reconstruct_scratch<double>(const Weight&, int64_t);
template cudaError_t reconstruct(Block<const float>, Block<const float>, const int*, const Weight&, const Weight&,
                                 Selection, double*, void*, cudaStream_t);
template cudaError_t reconstruct(Block<const double>, Block<const double>, const int*, const Weight&, const Weight&,
                                 Selection, double*, void*, cudaStream_t);

}  // namespace laser
