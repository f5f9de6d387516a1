#include "cuda/orthonormalize.hpp"

#include <vector>

#include "cuda/context.hpp"
#include "emulated.hpp"

namespace {

template <typename T>
void factor(const void* s, void* inverse, int64_t count, int64_t l, double* deviation, int* shifted,
            laser::Selection sel) {
  using namespace laser;
  std::vector<T> work(count * l * l);
  check(cholesky_inverse<T>(Block<const T>::dense(static_cast<const T*>(s), count, l, l),
                            Block<T>::dense(work.data(), count, l, l),
                            Block<T>::dense(static_cast<T*>(inverse), count, l, l), deviation, shifted, sel, nullptr),
        "test", count, l, l);
}

template <typename T>
void normalize(void* x, int64_t count, int64_t n, int64_t l, laser::Selection sel) {
  using namespace laser;
  std::vector<double> partial(normalize_partials(n, l, count));
  check(normalize_columns(Block<T>::dense(static_cast<T*>(x), count, n, l), sel, partial.data(), nullptr), "test",
        count, n, l);
}

}  // namespace

EMU_EXPORT int emu_normalize_columns(void* x, int64_t wide, int64_t count, int64_t n, int64_t l, const int* index,
                                     int64_t selected) {
  return guarded([&] {
    const laser::Selection sel{index, int(selected)};
    wide ? normalize<double>(x, count, n, l, sel) : normalize<float>(x, count, n, l, sel);
  });
}

EMU_EXPORT int emu_cholesky_inverse(const void* s, void* inverse, int64_t wide, int64_t count, int64_t l,
                                    double* deviation, int* shifted, const int* index, int64_t selected) {
  return guarded([&] {
    const laser::Selection sel{index, int(selected)};
    wide ? factor<double>(s, inverse, count, l, deviation, shifted, sel)
         : factor<float>(s, inverse, count, l, deviation, shifted, sel);
  });
}
