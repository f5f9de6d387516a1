#include "cuda/small_eigh.hpp"

#include "cuda/context.hpp"
#include "emulated.hpp"

EMU_EXPORT int emu_small_eigh(const void* h, void* w, double* theta, int64_t wide, int64_t count, int64_t l,
                              const int* index, int64_t selected) {
  using namespace laser;
  return guarded([&] {
    const Selection sel{index, int(selected)};
    const auto solve = [&](auto zero) {
      using T = decltype(zero);
      check(small_eigh(Block<const T>::dense(static_cast<const T*>(h), count, l, l),
                       Block<T>::dense(static_cast<T*>(w), count, l, l), theta, sel, nullptr),
            "test", count, l, l);
    };
    wide ? solve(double{}) : solve(float{});
  });
}

EMU_EXPORT int64_t emu_jacobi_limit(int64_t wide, int64_t bytes) {
  return wide ? laser::jacobi_limit<double>(size_t(bytes)) : laser::jacobi_limit<float>(size_t(bytes));
}
