// Tensor cores and asynchronous copies: one instruction per function, each with a twin for the emulator.
#pragma once
#include <cstdint>
#include <cstring>

#include "core/dtype.hpp"
#include "cuda/portable.cuh"

namespace laser {

// d += a b: one 16x8x16 step of a warp in bfloat16, sums in float32. Lane = 4 g + t holds, as in the PTX manual
// ("Matrix fragments for mma.m16n8k16"), two neighbouring values per register:
//   a: rows g, g + 8, g, g + 8, columns 2 t, 2 t, 2 t + 8, 2 t + 8      b: column g, rows 2 t, 2 t + 8
//   d: row g columns 2 t, 2 t + 1; row g + 8 columns 2 t, 2 t + 1
__device__ __forceinline__ void mma_m16n8k16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
#ifdef __CUDA_ARCH__
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};\n"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#elif defined(LASER_EMULATED)
  static uint32_t as[emu::kMaxWarps][32][4], bs[emu::kMaxWarps][32][2];  // what the lanes hold
  const int lane = emu::lane(), warp = emu::warp();
  std::memcpy(as[warp][lane], a, sizeof(a));
  std::memcpy(bs[warp][lane], b, sizeof(b));
  __syncwarp();
  const auto value = [](uint32_t pair, int k) { return widen(BFloat16{uint16_t(k % 2 ? pair >> 16 : pair)}); };
  for (int i = 0; i < 4; ++i) {
    const int row = lane / 4 + 8 * (i / 2), column = 2 * (lane % 4) + i % 2;
    double sum = d[i];
    for (int k = 0; k < 16; ++k) {
      const int holder = k % 8 / 2;
      sum += double(value(as[warp][row % 8 * 4 + holder][row / 8 + 2 * (k / 8)], k)) *
             double(value(bs[warp][column * 4 + holder][k / 8], k));
    }
    d[i] = float(sum);
    d[i] = std::abs(double(d[i])) > std::abs(sum) ? std::nextafter(d[i], 0.0f) : d[i];  // cut off, not rounded
  }
  __syncwarp();
#endif
}

// 16 bytes from global to shared memory, both aligned to 16; zeros where not `inside`. Arrives with copies_arrive.
__device__ __forceinline__ void copy_async(void* shared, const void* global, bool inside) {
#ifdef __CUDA_ARCH__
  const unsigned to = unsigned(__cvta_generic_to_shared(shared));
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;\n" ::"r"(to), "l"(global), "r"(inside ? 16 : 0)
               : "memory");
#else
  inside ? std::memcpy(shared, global, 16) : std::memset(shared, 0, 16);
#endif
}

__device__ __forceinline__ void copies_commit() {
#ifdef __CUDA_ARCH__
  asm volatile("cp.async.commit_group;\n" ::: "memory");
#endif
}

// Until at most `left` of this thread's committed groups are on their way.
template <int left>
__device__ __forceinline__ void copies_arrive() {
#ifdef __CUDA_ARCH__
  asm volatile("cp.async.wait_group %0;\n" ::"n"(left) : "memory");
#endif
}

}  // namespace laser
