#include <string>
#include <type_traits>

#include "cuda/portable.cuh"
#include "cuda/products.hpp"

namespace laser {
namespace {

template <typename E>
constexpr int kType = std::is_same_v<E, double>  ? CUDA_R_64F
                      : std::is_same_v<E, float> ? CUDA_R_32F
                                                 : CUDA_R_16BF;

// A row-major block is its transpose to cuBLAS, whose matrices are column-major.
template <typename E>
struct ColumnMajor {
  int operation;  // that turns what cuBLAS sees into the transposed block
  int64_t leading;

  explicit ColumnMajor(const Block<E>& x)
      : operation(x.col_stride == 1 ? CUBLAS_OP_N : CUBLAS_OP_T),
        leading(x.col_stride == 1 ? x.row_stride : x.col_stride) {
    const int64_t least = x.col_stride == 1 ? x.cols : x.rows;
    leading = leading < least ? least : leading;  // one row or column may come with any stride
  }
};

void check(const Cublas& table, int status, const char* type, int64_t count, int64_t m, int64_t n, int64_t k) {
  if (status == CUBLAS_STATUS_ALLOC_FAILED) {
    throw OutOfMemory("[laser_kernels] multiply: cuBLAS has no memory");
  }
  if (status != 0) {
    throw std::runtime_error(std::string("[laser_kernels] multiply: ") + table.GetStatusString(status) + " (" +
                             std::to_string(status) + ") on " + std::to_string(count) + " " + type + " products of " +
                             std::to_string(m) + "x" + std::to_string(k) + " and " + std::to_string(k) + "x" +
                             std::to_string(n));
  }
}

// Arrays of addresses begin on 16 bytes: some of cuBLAS's kernels were found to ask for that.
__host__ __device__ int64_t padded(int64_t count) { return (count + 1) / 2 * 2; }

// Where the operands of the selected matrices begin: the addresses of each, padded(count) apart.
__global__ void addresses_kernel(const void* a, int64_t a_stride, const void* b, int64_t b_stride, const void* c,
                                 int64_t c_stride, void** addresses, Selection sel) {
  const int s = blockIdx.x * blockDim.x + threadIdx.x;
  const auto offset = [](const void* base, int64_t bytes) {
    return const_cast<char*>(static_cast<const char*>(base) + bytes);
  };
  if (s < sel.count) {
    const int64_t i = sel[s];
    addresses[s] = offset(a, i * a_stride);
    addresses[padded(sel.count) + s] = offset(b, i * b_stride);
    addresses[2 * padded(sel.count) + s] = offset(c, i * c_stride);
  }
}

}  // namespace

template <typename E, typename T>
void multiply(const CudaContext& context, Block<const E> a, Block<const E> b, Block<T> c, T beta, const Batch& batch,
              T alpha) {
  if (c.col_stride != 1) {
    multiply<E, T>(context, b.transposed(), a.transposed(), c.transposed(), beta, batch, alpha);
    return;
  }
  const Cublas& table = *context.cublas;
  const ColumnMajor<const E> left(b), right(a);  // C^T = B^T A^T
  const int64_t m = c.rows, n = c.cols, k = a.cols;
  const char* type = std::is_same_v<E, double> ? "float64" : std::is_same_v<E, float> ? "float32" : "bfloat16";
  const int compute = std::is_same_v<T, double> ? CUBLAS_COMPUTE_64F : CUBLAS_COMPUTE_32F;
  const int64_t leading = c.row_stride < c.cols ? c.cols : c.row_stride;
  const int count = batch.selection.count;
  if (batch.first >= 0) {
    const E *from_b = b.data + batch.first * b.stride, *from_a = a.data + batch.first * a.stride;
    T* to = c.data + batch.first * c.stride;
    const int status = count == 1
                           ? table.GemmEx(context.cublas_handle, left.operation, right.operation, n, m, k, &alpha,
                                          from_b, kType<E>, left.leading, from_a, kType<E>, right.leading, &beta, to,
                                          kType<T>, leading, compute, CUBLAS_GEMM_DEFAULT)
                           : table.GemmStridedBatchedEx(context.cublas_handle, left.operation, right.operation, n, m, k,
                                                        &alpha, from_b, kType<E>, left.leading, b.stride, from_a,
                                                        kType<E>, right.leading, a.stride, &beta, to, kType<T>, leading,
                                                        c.stride, count, compute, CUBLAS_GEMM_DEFAULT);
    check(table, status, type, count, m, n, k);
    return;
  }
  laser::check(launch(addresses_kernel, dim3((count + 127) / 128), dim3(128), 0, context.stream, b.data,
                      b.stride * int64_t(sizeof(E)), a.data, a.stride * int64_t(sizeof(E)), c.data,
                      c.stride * int64_t(sizeof(T)), batch.addresses, batch.selection),
               "multiply", count, m, n);
  void** pointers = batch.addresses;
  const int status =
      table.GemmBatchedEx(context.cublas_handle, left.operation, right.operation, n, m, k, &alpha, pointers, kType<E>,
                          left.leading, pointers + padded(count), kType<E>, right.leading, &beta,
                          pointers + 2 * padded(count), kType<T>, leading, count, compute, CUBLAS_GEMM_DEFAULT);
  check(table, status, type, count, m, n, k);
}

template void multiply(const CudaContext&, Block<const float>, Block<const float>, Block<float>, float, const Batch&,
                       float);
template void multiply(const CudaContext&, Block<const double>, Block<const double>, Block<double>, double,
                       const Batch&, double);
template void multiply(const CudaContext&, Block<const BFloat16>, Block<const BFloat16>, Block<float>, float,
                       const Batch&, float);

ExactMath::ExactMath(const CudaContext& context) : context_(context) {
  context.cublas->GetMathMode(context.cublas_handle, &before_);
  context.cublas->SetMathMode(context.cublas_handle,
                              CUBLAS_DEFAULT_MATH | CUBLAS_MATH_DISALLOW_REDUCED_PRECISION_REDUCTION);
}

ExactMath::~ExactMath() { context_.cublas->SetMathMode(context_.cublas_handle, before_); }

}  // namespace laser
