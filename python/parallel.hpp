// torch's thread pool for C++ that may throw: the first exception is rethrown on the caller's
// thread.
#pragma once
#include <torch/csrc/stable/ops.h>

#include <exception>
#include <mutex>

namespace laser {

// f(i) for i in 0..count-1. Inside another such loop it runs serially, as do ATen's own functions.
template <typename F>
void parallel_each(int64_t count, const F& f) {
  if (count == 1) {
    f(int64_t{0});
    return;
  }
  std::exception_ptr error;
  std::mutex guard;
  torch::stable::parallel_for(0, count, 1, [&](int64_t first, int64_t last) {
    try {
      for (int64_t i = first; i < last; ++i) {
        f(i);
      }
    } catch (...) {
      const std::lock_guard<std::mutex> lock(guard);
      if (!error) {
        error = std::current_exception();
      }
    }
  });
  if (error) {
    std::rethrow_exception(error);
  }
}

}  // namespace laser
