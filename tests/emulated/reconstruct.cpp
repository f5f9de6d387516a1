#include "cuda/reconstruct.hpp"

#include <vector>

#include "cuda/context.hpp"
#include "emulated.hpp"

EMU_EXPORT int emu_reconstruct(const void* left, const void* right, int64_t wide, int64_t rank, const int* exponent,
                               const void* weight, void* out, int64_t dtype, int64_t count, int64_t rows, int64_t cols,
                               int64_t stride, int64_t row_stride, const int* index, int64_t selected,
                               double* residual2) {
  using namespace laser;
  return guarded([&] {
    const Weight w{weight, Dtype(dtype), count, rows, cols, stride, row_stride};
    Weight to = w;
    to.data = out;
    const auto run = [&](auto zero) {
      using T = decltype(zero);
      std::vector<char> scratch(reconstruct_scratch<T>(w, rank) + 16);
      char* aligned = scratch.data() + (16 - reinterpret_cast<uintptr_t>(scratch.data()) % 16) % 16;
      check(reconstruct(Block<const T>::dense(static_cast<const T*>(left), count, rows, rank),
                        Block<const T>::dense(static_cast<const T*>(right), count, cols, rank), exponent, w, to,
                        {index, int(selected)}, residual2, aligned, nullptr),
            "test", count, rows, cols);
    };
    wide ? run(double{}) : run(float{});
  });
}
