// The few functions of cuBLAS and cuSOLVER that csrc/cuda calls, found at run time: building needs neither their
// headers nor their libraries. Opaque handles are void*, enumerations int; tests/vendor_headers.cpp compares every
// prototype and value with NVIDIA's headers.
#pragma once
#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>

namespace laser {

// library_types.h, cublas_api.h, cusolver_common.h
constexpr int CUDA_R_32F = 0, CUDA_R_64F = 1, CUDA_R_16F = 2, CUDA_R_16BF = 14;
constexpr int CUBLAS_STATUS_SUCCESS = 0, CUBLAS_STATUS_ALLOC_FAILED = 3;
constexpr int CUBLAS_OP_N = 0, CUBLAS_OP_T = 1;
constexpr int CUBLAS_FILL_MODE_LOWER = 0;
constexpr int CUBLAS_COMPUTE_32F = 68, CUBLAS_COMPUTE_64F = 70;
constexpr int CUBLAS_GEMM_DEFAULT = -1;
constexpr int CUBLAS_DEFAULT_MATH = 0, CUBLAS_MATH_DISALLOW_REDUCED_PRECISION_REDUCTION = 16;
constexpr int CUSOLVER_STATUS_SUCCESS = 0, CUSOLVER_STATUS_NOT_INITIALIZED = 1, CUSOLVER_STATUS_ALLOC_FAILED = 2,
              CUSOLVER_STATUS_INVALID_VALUE = 3, CUSOLVER_STATUS_ARCH_MISMATCH = 4, CUSOLVER_STATUS_MAPPING_ERROR = 5,
              CUSOLVER_STATUS_EXECUTION_FAILED = 6, CUSOLVER_STATUS_INTERNAL_ERROR = 7,
              CUSOLVER_STATUS_MATRIX_TYPE_NOT_SUPPORTED = 8, CUSOLVER_STATUS_NOT_SUPPORTED = 9,
              CUSOLVER_STATUS_INVALID_WORKSPACE = 31;
constexpr int CUSOLVER_EIG_MODE_VECTOR = 1;

// The handle is torch's, so the table is of the libcublas that the process has loaded. The gemm functions are the _64
// ones, which every libcublas.so.12 has.
struct Cublas {
  int (*GemmEx)(void* handle, int transa, int transb, int64_t m, int64_t n, int64_t k, const void* alpha, const void* a,
                int type_a, int64_t lda, const void* b, int type_b, int64_t ldb, const void* beta, void* c, int type_c,
                int64_t ldc, int compute, int algorithm);
  int (*GemmStridedBatchedEx)(void* handle, int transa, int transb, int64_t m, int64_t n, int64_t k, const void* alpha,
                              const void* a, int type_a, int64_t lda, int64_t stride_a, const void* b, int type_b,
                              int64_t ldb, int64_t stride_b, const void* beta, void* c, int type_c, int64_t ldc,
                              int64_t stride_c, int64_t count, int compute, int algorithm);
  int (*GemmBatchedEx)(void* handle, int transa, int transb, int64_t m, int64_t n, int64_t k, const void* alpha,
                       const void* const* a, int type_a, int64_t lda, const void* const* b, int type_b, int64_t ldb,
                       const void* beta, void* const* c, int type_c, int64_t ldc, int64_t count, int compute,
                       int algorithm);
  int (*GetMathMode)(void* handle, int* mode);
  int (*SetMathMode)(void* handle, int mode);
  const char* (*GetStatusString)(int status);
};

// All matrices are column-major. gesvdp and gesvdj give V, gesvd gives V^T.
struct Cusolver {
  int (*GetVersion)(int* version);
  int (*Create)(void** handle);
  int (*Destroy)(void* handle);
  int (*SetStream)(void* handle, cudaStream_t stream);
  int (*CreateParams)(void** params);
  int (*DestroyParams)(void* params);
  int (*CreateGesvdjInfo)(void** info);
  int (*DestroyGesvdjInfo)(void* info);

  // Null before cuSOLVER 11.7.1 (CUDA 12.6.2).
  int (*XsyevBatched_bufferSize)(void* handle, void* params, int jobz, int uplo, int64_t n, int type_a, const void* a,
                                 int64_t lda, int type_w, const void* w, int compute, size_t* device_bytes,
                                 size_t* host_bytes, int64_t count);
  int (*XsyevBatched)(void* handle, void* params, int jobz, int uplo, int64_t n, int type_a, void* a, int64_t lda,
                      int type_w, void* w, int compute, void* device_work, size_t device_bytes, void* host_work,
                      size_t host_bytes, int* info, int64_t count);
  int (*Xsyevd_bufferSize)(void* handle, void* params, int jobz, int uplo, int64_t n, int type_a, const void* a,
                           int64_t lda, int type_w, const void* w, int compute, size_t* device_bytes,
                           size_t* host_bytes);
  int (*Xsyevd)(void* handle, void* params, int jobz, int uplo, int64_t n, int type_a, void* a, int64_t lda, int type_w,
                void* w, int compute, void* device_work, size_t device_bytes, void* host_work, size_t host_bytes,
                int* info);

  int (*Xgesvdp_bufferSize)(void* handle, void* params, int jobz, int econ, int64_t m, int64_t n, int type_a,
                            const void* a, int64_t lda, int type_s, const void* s, int type_u, const void* u,
                            int64_t ldu, int type_v, const void* v, int64_t ldv, int compute, size_t* device_bytes,
                            size_t* host_bytes);
  int (*Xgesvdp)(void* handle, void* params, int jobz, int econ, int64_t m, int64_t n, int type_a, void* a, int64_t lda,
                 int type_s, void* s, int type_u, void* u, int64_t ldu, int type_v, void* v, int64_t ldv, int compute,
                 void* device_work, size_t device_bytes, void* host_work, size_t host_bytes, int* info,
                 double* h_err_sigma);
  int (*Sgesvdj_bufferSize)(void* handle, int jobz, int econ, int m, int n, const float* a, int lda, const float* s,
                            const float* u, int ldu, const float* v, int ldv, int* elements, void* params);
  int (*Sgesvdj)(void* handle, int jobz, int econ, int m, int n, float* a, int lda, float* s, float* u, int ldu,
                 float* v, int ldv, float* work, int elements, int* info, void* params);
  int (*Dgesvdj_bufferSize)(void* handle, int jobz, int econ, int m, int n, const double* a, int lda, const double* s,
                            const double* u, int ldu, const double* v, int ldv, int* elements, void* params);
  int (*Dgesvdj)(void* handle, int jobz, int econ, int m, int n, double* a, int lda, double* s, double* u, int ldu,
                 double* v, int ldv, double* work, int elements, int* info, void* params);
  int (*Xgesvd_bufferSize)(void* handle, void* params, signed char jobu, signed char jobvt, int64_t m, int64_t n,
                           int type_a, const void* a, int64_t lda, int type_s, const void* s, int type_u, const void* u,
                           int64_t ldu, int type_vt, const void* vt, int64_t ldvt, int compute, size_t* device_bytes,
                           size_t* host_bytes);
  int (*Xgesvd)(void* handle, void* params, signed char jobu, signed char jobvt, int64_t m, int64_t n, int type_a,
                void* a, int64_t lda, int type_s, void* s, int type_u, void* u, int64_t ldu, int type_vt, void* vt,
                int64_t ldvt, int compute, void* device_work, size_t device_bytes, void* host_work, size_t host_bytes,
                int* info);
};

// Null where the library, or one of its functions, is not to be had. The first call looks; any thread may call.
const Cublas* cublas();
const Cusolver* cusolver();

// "CUSOLVER_STATUS_INTERNAL_ERROR"; cuSOLVER itself names no status.
const char* cusolver_status_name(int status);

// Tests only: what the functions above answer until null is installed. The table must outlive that.
void install_cublas(const Cublas* table);
void install_cusolver(const Cusolver* table);

}  // namespace laser
