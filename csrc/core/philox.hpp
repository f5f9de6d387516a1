// Counter-based randomness: an integer that depends on (seed, key, row, column) alone, so that the
// sketch has the same bits on every device, in every batch and at any thread count. Ref: Salmon,
// Moraes, Dror, Shaw: Parallel random numbers: as easy as 1, 2, 3 (SC 2011), Philox4x32-10.
#pragma once
#include <cstdint>

#include "core/portable.hpp"

namespace laser {

struct Philox4x32 {
  uint32_t word[4];
};

// The ten rounds. Multipliers and Weyl increments are the paper's table 2.
LASER_HOST_DEVICE inline Philox4x32 philox4x32(Philox4x32 counter, uint32_t key0, uint32_t key1) {
  for (int round = 0; round < 10; ++round) {
    const uint64_t p0 = uint64_t{0xD2511F53u} * counter.word[0];
    const uint64_t p1 = uint64_t{0xCD9E8D57u} * counter.word[2];
    counter = {{uint32_t(p1 >> 32) ^ counter.word[1] ^ key0, uint32_t(p1), uint32_t(p0 >> 32) ^ counter.word[3] ^ key1,
                uint32_t(p0)}};
    key0 += 0x9E3779B9u;
    key1 += 0xBB67AE85u;
  }
  return counter;
}

LASER_HOST_DEVICE inline int popcount64(uint64_t x) {
#if defined(__CUDA_ARCH__)
  return __popcll(x);
#else
  return __builtin_popcountll(x);
#endif
}

// The two sketch entries (row, 2 pair) and (row, 2 pair + 1): popcount(64 random bits) - 32, a
// centred binomial of variance 16. Integers in [-32, 32] are exact in bf16, and no logarithm or
// cosine can differ between devices. key: the tensor's 64-bit key, xored into the seed's place by
// one more Philox call so that both are fully mixed.
struct SketchPair {
  int even, odd;
};

struct SketchKey {
  uint32_t key0, key1;
};

LASER_HOST_DEVICE inline SketchKey sketch_key(uint64_t seed, uint64_t key) {
  const Philox4x32 mixed = philox4x32({{uint32_t(key), uint32_t(key >> 32), 0x6C617365u /* "lase" */, 0x72u /* "r" */}},
                                      uint32_t(seed), uint32_t(seed >> 32));
  return {mixed.word[0], mixed.word[1]};
}

LASER_HOST_DEVICE inline SketchPair sketch_pair(SketchKey key, int64_t row, int64_t pair) {
  const Philox4x32 r =
      philox4x32({{uint32_t(row), uint32_t(uint64_t(row) >> 32), uint32_t(pair), uint32_t(uint64_t(pair) >> 32)}},
                 key.key0, key.key1);
  return {popcount64(uint64_t(r.word[0]) << 32 | r.word[1]) - 32,
          popcount64(uint64_t(r.word[2]) << 32 | r.word[3]) - 32};
}

}  // namespace laser
