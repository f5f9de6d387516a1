// Runs CUDA kernel bodies on the CPU, one fiber per CUDA thread, so that tests execute every line of csrc/cuda without
// a GPU. It checks logic, not speed: no memory model, no occupancy, no flush to zero. x86-64 only.
//
//   emu::launch(grid, block, shared_bytes, [=] { some_kernel<T>(a, b, n); });
//
// Warps run to completion: each goes on until all its lanes wait at a block barrier or have returned, so that a
// forgotten __syncthreads() reads stale memory. Their order is a policy: 0 ascending, 1 descending, 2 and above a
// shuffle. A warp collective that some live lane does not reach throws.
#pragma once
#include <cstdint>
#include <cstring>
#include <functional>
#include <stdexcept>
#include <vector>

#ifndef __x86_64__
#error "emu.hpp switches stacks with x86-64 instructions"
#endif

struct dim3 {
  unsigned x, y, z;
  dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};

namespace emu {

constexpr int kWarp = 32;
constexpr int kMaxWarps = 32;

// What tests choose.
struct Policy {
  int order = 0;               // of the warps within a block, and of the blocks within a grid
  bool drop_barriers = false;  // __syncthreads() does nothing: the fault that tests must notice
  int64_t launches = 0;        // since the process began
  int64_t host_steps = 0;      // the same: waits for a stream, and copies to or from the host, which no graph can hold
};
Policy& policy();

// Of the thread that is running.
const dim3& thread_index();
const dim3& block_index();
const dim3& block_size();
const dim3& grid_size();
void* dynamic_shared();
int lane();
int warp();

void block_barrier();
void warp_barrier();
// Every live lane of the warp gives 8 bytes and takes those of lane `source`.
uint64_t exchange(uint64_t value, int source);

void launch(dim3 grid, dim3 block, size_t shared_bytes, const std::function<void()>& body);

template <typename T>
T shuffle(T value, int source) {
  static_assert(sizeof(T) <= 8, "a shuffle moves at most 8 bytes");
  uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof(T));
  bits = exchange(bits, source & (kWarp - 1));
  std::memcpy(&value, &bits, sizeof(T));
  return value;
}

}  // namespace emu
