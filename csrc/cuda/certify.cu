#include "cuda/certify.hpp"
#include "cuda/portable.cuh"

namespace laser {
namespace {

constexpr int kThreads = 128;

dim3 one_thread_each(int64_t count) { return dim3(unsigned((count + kThreads - 1) / kThreads)); }

__global__ void unpack_kernel(const Prepared* __restrict__ prepared, int64_t count, double* norm2, int* exponent) {
  const int64_t b = int64_t(blockIdx.x) * kThreads + threadIdx.x;
  if (b < count) {
    norm2[b] = prepared[b].norm2;
    exponent[b] = prepared[b].exponent;
  }
}

__global__ void norms_kernel(const Prepared* __restrict__ prepared, int64_t count, double* out) {
  const int64_t b = int64_t(blockIdx.x) * kThreads + threadIdx.x;
  if (b < count) {
    out[2 * b] = ldexp(sqrt(prepared[b].norm2), prepared[b].exponent);
    out[2 * b + 1] = prepared[b].top;
  }
}

__global__ void certify_kernel(const Progress* __restrict__ progress, const Prepared* __restrict__ prepared,
                               int64_t count, int64_t rows, int64_t cols, double eps, double tol, int64_t locked,
                               Certificate* certificates) {
  const int64_t b = int64_t(blockIdx.x) * kThreads + threadIdx.x;
  if (b < count) {
    const Prepared& p = prepared[b];
    const bool finite = p.top <= 1.7976931348623157e308;  // neither Inf nor NaN
    Certificate c{double(int(finite ? Status::kOk : Status::kNonFinite)), 0, 0, 0, 0, 0};
    if (finite && progress) {
      c = certificate_of(progress[b], p.norm2, p.exponent, rows, cols, eps, tol, locked);
    }
    certificates[b] = c;
  }
}

__global__ void measured_kernel(const double* __restrict__ residual2, const int* __restrict__ exponent, double noise,
                                double slack, bool in_place, Certificate* certificates, Selection sel) {
  const int s = blockIdx.x * kThreads + threadIdx.x;
  if (s < sel.count) {
    const int64_t b = sel[s];
    measured(certificates[b], residual2[2 * b], residual2[2 * b + 1], exponent[b], noise, slack, in_place);
  }
}

template <typename F>
__global__ void singular_values_kernel(const double* __restrict__ sigma, int64_t rank, const int* __restrict__ exponent,
                                       F* out, int64_t pitch, Selection sel) {
  const int64_t e = int64_t(blockIdx.x) * kThreads + threadIdx.x;
  if (e < sel.count * rank) {
    const int64_t b = sel[int(e / rank)], j = e % rank;
    out[b * pitch + j] = F(ldexp(sigma[b * rank + j], exponent[b]));
  }
}

__global__ void square_roots_kernel(double* x, int64_t n) {
  const int64_t i = int64_t(blockIdx.x) * kThreads + threadIdx.x;
  if (i < n) {
    x[i] = sqrt(x[i]);
  }
}

}  // namespace

cudaError_t square_roots(double* x, int64_t n, cudaStream_t stream) {
  return launch(square_roots_kernel, one_thread_each(n), dim3(kThreads), 0, stream, x, n);
}

cudaError_t unpack(const Prepared* prepared, int64_t count, double* norm2, int* exponent, cudaStream_t stream) {
  return launch(unpack_kernel, one_thread_each(count), dim3(kThreads), 0, stream, prepared, count, norm2, exponent);
}

cudaError_t norms(const Prepared* prepared, int64_t count, double* out, cudaStream_t stream) {
  return launch(norms_kernel, one_thread_each(count), dim3(kThreads), 0, stream, prepared, count, out);
}

cudaError_t certify(const Progress* progress, const Prepared* prepared, int64_t count, int64_t rows, int64_t cols,
                    double eps, double tol, int64_t locked, Certificate* certificates, cudaStream_t stream) {
  return launch(certify_kernel, one_thread_each(count), dim3(kThreads), 0, stream, progress, prepared, count, rows,
                cols, eps, tol, locked, certificates);
}

cudaError_t measured(const double* residual2, const int* exponent, double noise, double slack, bool in_place,
                     Certificate* certificates, Selection sel, cudaStream_t stream) {
  return launch(measured_kernel, one_thread_each(sel.count), dim3(kThreads), 0, stream, residual2, exponent, noise,
                slack, in_place, certificates, sel);
}

template <typename F>
cudaError_t singular_values(const double* sigma, int64_t rank, const int* exponent, F* out, int64_t pitch,
                            Selection sel, cudaStream_t stream) {
  return launch(singular_values_kernel<F>, one_thread_each(sel.count * rank), dim3(kThreads), 0, stream, sigma, rank,
                exponent, out, pitch, sel);
}

template cudaError_t singular_values(const double*, int64_t, const int*, float*, int64_t, Selection, cudaStream_t);
template cudaError_t singular_values(const double*, int64_t, const int*, double*, int64_t, Selection, cudaStream_t);

}  // namespace laser
