#include "fake_cublas.hpp"

#include <cmath>
#include <type_traits>

#include "core/dtype.hpp"

namespace laser {
namespace {

// Towards zero, as tensor cores cut off what does not fit their sums.
float cut_off(double x) {
  const float y = float(x);
  return std::abs(double(y)) > std::abs(x) ? std::nextafter(y, 0.0f) : y;
}

// Sums of bfloat16 products are cut off every kStep terms; other results are rounded once, as cuBLAS would at best.
constexpr int64_t kStep = 16;

template <typename E, typename T>
void gemm(int transa, int transb, int64_t m, int64_t n, int64_t k, const void* alpha, const void* a, int64_t lda,
          const void* b, int64_t ldb, const void* beta, void* c, int64_t ldc) {
  const E* from_a = static_cast<const E*>(a);
  const E* from_b = static_cast<const E*>(b);
  T* to = static_cast<T*>(c);
  const T by = *static_cast<const T*>(alpha), keep = *static_cast<const T*>(beta);
  for (int64_t j = 0; j < n; ++j) {
    for (int64_t i = 0; i < m; ++i) {
      double sum = 0;
      for (int64_t p = 0; p < k; ++p) {
        const E x = transa ? from_a[p + i * lda] : from_a[i + p * lda];
        const E y = transb ? from_b[j + p * ldb] : from_b[p + j * ldb];
        sum += double(widen(x)) * double(widen(y));
        if (std::is_same_v<E, BFloat16> && (p % kStep == kStep - 1 || p == k - 1)) {
          sum = cut_off(sum);
        }
      }
      T& out = to[i + j * ldc];
      out = T(by * sum) + (keep == 0 ? T(0) : keep * out);
    }
  }
}

constexpr int kInvalidValue = 7, kNotSupported = 15;

int64_t refused = 0;  // products that will find no memory
int math_mode = 1;    // torch may have left TF32 on
int last_mode = 0;    // of the last product

int any_type(int transa, int transb, int64_t m, int64_t n, int64_t k, const void* alpha, const void* a, int type_a,
             int64_t lda, const void* b, int type_b, int64_t ldb, const void* beta, void* c, int type_c, int64_t ldc,
             int compute) {
  last_mode = math_mode;
  if (refused > 0) {
    --refused;
    return CUBLAS_STATUS_ALLOC_FAILED;
  }
  if (m < 0 || n < 0 || k < 0 || lda < (transa ? k : m) || ldb < (transb ? n : k) || ldc < m) {
    return kInvalidValue;
  }
  if (type_a != type_b) {
    return kNotSupported;
  }
  if (type_a == CUDA_R_64F && type_c == CUDA_R_64F && compute == CUBLAS_COMPUTE_64F) {
    gemm<double, double>(transa, transb, m, n, k, alpha, a, lda, b, ldb, beta, c, ldc);
  } else if (type_a == CUDA_R_32F && type_c == CUDA_R_32F && compute == CUBLAS_COMPUTE_32F) {
    gemm<float, float>(transa, transb, m, n, k, alpha, a, lda, b, ldb, beta, c, ldc);
  } else if (type_a == CUDA_R_16BF && type_c == CUDA_R_32F && compute == CUBLAS_COMPUTE_32F) {
    gemm<BFloat16, float>(transa, transb, m, n, k, alpha, a, lda, b, ldb, beta, c, ldc);
  } else {
    return kNotSupported;
  }
  return CUBLAS_STATUS_SUCCESS;
}

int size_of_type(int type) { return type == CUDA_R_64F ? 8 : type == CUDA_R_32F ? 4 : 2; }

int strided(void*, int transa, int transb, int64_t m, int64_t n, int64_t k, const void* alpha, const void* a,
            int type_a, int64_t lda, int64_t stride_a, const void* b, int type_b, int64_t ldb, int64_t stride_b,
            const void* beta, void* c, int type_c, int64_t ldc, int64_t stride_c, int64_t count, int compute, int) {
  int status = CUBLAS_STATUS_SUCCESS;
  for (int64_t i = 0; i < count && status == CUBLAS_STATUS_SUCCESS; ++i) {
    status = any_type(transa, transb, m, n, k, alpha, static_cast<const char*>(a) + i * stride_a * size_of_type(type_a),
                      type_a, lda, static_cast<const char*>(b) + i * stride_b * size_of_type(type_b), type_b, ldb, beta,
                      static_cast<char*>(c) + i * stride_c * size_of_type(type_c), type_c, ldc, compute);
  }
  return status;
}

int single(void*, int transa, int transb, int64_t m, int64_t n, int64_t k, const void* alpha, const void* a, int type_a,
           int64_t lda, const void* b, int type_b, int64_t ldb, const void* beta, void* c, int type_c, int64_t ldc,
           int compute, int) {
  return any_type(transa, transb, m, n, k, alpha, a, type_a, lda, b, type_b, ldb, beta, c, type_c, ldc, compute);
}

int batched(void*, int transa, int transb, int64_t m, int64_t n, int64_t k, const void* alpha, const void* const* a,
            int type_a, int64_t lda, const void* const* b, int type_b, int64_t ldb, const void* beta, void* const* c,
            int type_c, int64_t ldc, int64_t count, int compute, int) {
  for (const auto* addresses : {a, b, const_cast<const void* const*>(c)}) {
    if (reinterpret_cast<uintptr_t>(addresses) % 16 != 0) {
      return kNotSupported;
    }
  }
  int status = CUBLAS_STATUS_SUCCESS;
  for (int64_t i = 0; i < count && status == CUBLAS_STATUS_SUCCESS; ++i) {
    status = any_type(transa, transb, m, n, k, alpha, a[i], type_a, lda, b[i], type_b, ldb, beta, c[i], type_c, ldc,
                      compute);
  }
  return status;
}

}  // namespace

void refuse_products(int64_t calls) { refused = calls; }

void math_modes(int64_t* out) {
  out[0] = last_mode;
  out[1] = math_mode;
}

const Cublas& fake_cublas() {
  static const Cublas table = [] {
    Cublas t{};
    t.GemmEx = single;
    t.GemmStridedBatchedEx = strided;
    t.GemmBatchedEx = batched;
    t.GetMathMode = [](void*, int* mode) {
      *mode = math_mode;
      return 0;
    };
    t.SetMathMode = [](void*, int mode) {
      math_mode = mode;
      return 0;
    };
    t.GetStatusString = [](int) { return "CUBLAS_STATUS_EMULATED"; };
    return t;
  }();
  return table;
}

}  // namespace laser
