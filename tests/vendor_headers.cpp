// Compiles if csrc/cuda/vendor.hpp agrees with NVIDIA's headers, and does nothing else (tests/test_vendor.py).
#include <cublas_v2.h>
#include <cusolverDn.h>

#include <type_traits>

#include "cuda/vendor.hpp"

namespace {

// Whether a call through Mine passes what Theirs takes.
template <typename Mine, typename Theirs>
constexpr bool same_value() {
  if constexpr (std::is_same_v<Mine, Theirs>) {
    return true;
  } else if constexpr (std::is_enum_v<Theirs>) {
    return std::is_same_v<Mine, int> && sizeof(Theirs) == sizeof(int);
  } else if constexpr (std::is_integral_v<Mine> && std::is_integral_v<Theirs>) {
    return sizeof(Mine) == sizeof(Theirs) && std::is_signed_v<Mine> == std::is_signed_v<Theirs>;
  } else if constexpr (std::is_pointer_v<Mine> && std::is_pointer_v<Theirs>) {
    using M = std::remove_pointer_t<Mine>;
    using T = std::remove_pointer_t<Theirs>;
    if constexpr (std::is_pointer_v<M> || std::is_enum_v<T>) {  // a handle or an enumeration to be filled in
      return same_value<M, T>();
    } else {
      return std::is_same_v<M, void> && std::is_class_v<T> && !std::is_const_v<T>;  // a handle
    }
  } else {
    return false;
  }
}

template <typename Mine, typename Theirs>
struct Compare;
template <typename R, typename... A, typename S, typename... B>
struct Compare<R (*)(A...), S (*)(B...)> {
  static constexpr bool same() {
    if constexpr (sizeof...(A) == sizeof...(B)) {
      return same_value<R, S>() && (same_value<A, B>() && ...);
    } else {
      return false;
    }
  }
};

#define LASER_FUNCTION(table, member, theirs) \
  static_assert(Compare<decltype(laser::table::member), decltype(&::theirs)>::same(), #theirs)
#define LASER_VALUE(name) static_assert(laser::name == int(::name), #name)

LASER_FUNCTION(Cublas, GemmEx, cublasGemmEx_64);
LASER_FUNCTION(Cublas, GemmStridedBatchedEx, cublasGemmStridedBatchedEx_64);
LASER_FUNCTION(Cublas, GemmBatchedEx, cublasGemmBatchedEx_64);
LASER_FUNCTION(Cublas, GetMathMode, cublasGetMathMode);
LASER_FUNCTION(Cublas, SetMathMode, cublasSetMathMode);
LASER_FUNCTION(Cublas, GetStatusString, cublasGetStatusString);

LASER_FUNCTION(Cusolver, GetVersion, cusolverGetVersion);
LASER_FUNCTION(Cusolver, Create, cusolverDnCreate);
LASER_FUNCTION(Cusolver, Destroy, cusolverDnDestroy);
LASER_FUNCTION(Cusolver, SetStream, cusolverDnSetStream);
LASER_FUNCTION(Cusolver, CreateParams, cusolverDnCreateParams);
LASER_FUNCTION(Cusolver, DestroyParams, cusolverDnDestroyParams);
LASER_FUNCTION(Cusolver, CreateGesvdjInfo, cusolverDnCreateGesvdjInfo);
LASER_FUNCTION(Cusolver, DestroyGesvdjInfo, cusolverDnDestroyGesvdjInfo);
LASER_FUNCTION(Cusolver, XsyevBatched_bufferSize, cusolverDnXsyevBatched_bufferSize);
LASER_FUNCTION(Cusolver, XsyevBatched, cusolverDnXsyevBatched);
LASER_FUNCTION(Cusolver, Xsyevd_bufferSize, cusolverDnXsyevd_bufferSize);
LASER_FUNCTION(Cusolver, Xsyevd, cusolverDnXsyevd);
LASER_FUNCTION(Cusolver, Xgesvdp_bufferSize, cusolverDnXgesvdp_bufferSize);
LASER_FUNCTION(Cusolver, Xgesvdp, cusolverDnXgesvdp);
LASER_FUNCTION(Cusolver, Sgesvdj_bufferSize, cusolverDnSgesvdj_bufferSize);
LASER_FUNCTION(Cusolver, Sgesvdj, cusolverDnSgesvdj);
LASER_FUNCTION(Cusolver, Dgesvdj_bufferSize, cusolverDnDgesvdj_bufferSize);
LASER_FUNCTION(Cusolver, Dgesvdj, cusolverDnDgesvdj);
LASER_FUNCTION(Cusolver, Xgesvd_bufferSize, cusolverDnXgesvd_bufferSize);
LASER_FUNCTION(Cusolver, Xgesvd, cusolverDnXgesvd);

LASER_VALUE(CUDA_R_32F);
LASER_VALUE(CUDA_R_64F);
LASER_VALUE(CUDA_R_16F);
LASER_VALUE(CUDA_R_16BF);
LASER_VALUE(CUBLAS_STATUS_SUCCESS);
LASER_VALUE(CUBLAS_STATUS_ALLOC_FAILED);
LASER_VALUE(CUBLAS_OP_N);
LASER_VALUE(CUBLAS_OP_T);
LASER_VALUE(CUBLAS_FILL_MODE_LOWER);
LASER_VALUE(CUBLAS_COMPUTE_32F);
LASER_VALUE(CUBLAS_COMPUTE_64F);
LASER_VALUE(CUBLAS_GEMM_DEFAULT);
LASER_VALUE(CUBLAS_DEFAULT_MATH);
LASER_VALUE(CUBLAS_MATH_DISALLOW_REDUCED_PRECISION_REDUCTION);
LASER_VALUE(CUSOLVER_STATUS_SUCCESS);
LASER_VALUE(CUSOLVER_STATUS_NOT_INITIALIZED);
LASER_VALUE(CUSOLVER_STATUS_ALLOC_FAILED);
LASER_VALUE(CUSOLVER_STATUS_INVALID_VALUE);
LASER_VALUE(CUSOLVER_STATUS_ARCH_MISMATCH);
LASER_VALUE(CUSOLVER_STATUS_MAPPING_ERROR);
LASER_VALUE(CUSOLVER_STATUS_EXECUTION_FAILED);
LASER_VALUE(CUSOLVER_STATUS_INTERNAL_ERROR);
LASER_VALUE(CUSOLVER_STATUS_MATRIX_TYPE_NOT_SUPPORTED);
LASER_VALUE(CUSOLVER_STATUS_NOT_SUPPORTED);
LASER_VALUE(CUSOLVER_STATUS_INVALID_WORKSPACE);
LASER_VALUE(CUSOLVER_EIG_MODE_VECTOR);

}  // namespace
