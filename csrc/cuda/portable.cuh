// What a kernel body and its launcher need so that both nvcc and, with the emulator's cuda_runtime.h, a C++ compiler
// accept them.
#pragma once
#include <cuda_runtime.h>

#include <cstddef>

#ifdef __CUDACC__
#define LASER_DYNAMIC_SHARED(T, name)                             \
  extern __shared__ __align__(128) unsigned char laser_shared_[]; \
  T* name = reinterpret_cast<T*>(laser_shared_)
#elif defined(LASER_EMULATED)
#define LASER_DYNAMIC_SHARED(T, name) T* name = static_cast<T*>(emu::dynamic_shared())
#endif

namespace laser {

// What a block may have without asking for more.
constexpr size_t kSharedDefault = 48 << 10;

#if defined(__CUDACC__) || defined(LASER_EMULATED)
// Runs kernel(arguments...) on the stream. Arguments are converted to the kernel's parameter types.
template <typename... P, typename... A>
cudaError_t launch(void (*kernel)(P...), dim3 grid, dim3 block, size_t shared_bytes, cudaStream_t stream,
                   const A&... arguments) {
  if (grid.x == 0 || grid.y == 0 || grid.z == 0) {
    return cudaSuccess;  // an empty batch: no device takes a grid without blocks
  }
#ifdef __CUDACC__
  if (shared_bytes > kSharedDefault) {
    const cudaError_t status = cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel),
                                                    cudaFuncAttributeMaxDynamicSharedMemorySize, int(shared_bytes));
    if (status != cudaSuccess) {
      return status;  // check() forgets it
    }
  }
  kernel<<<grid, block, shared_bytes, stream>>>(P(arguments)...);
  return cudaGetLastError();
#else
  (void)stream;
  emu::launch(grid, block, shared_bytes, [=] { kernel(P(arguments)...); });
  return cudaSuccess;
#endif
}
#endif

}  // namespace laser
