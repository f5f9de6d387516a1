// The only place where a runtime dtype becomes a type.
#pragma once
#include "cpu/dtype.hpp"
#include "cpu/kernels.hpp"

namespace laser::cpu {

template <typename F>
auto with_dtype(Dtype dtype, const F& f) {
  switch (dtype) {
    case Dtype::kFloat64:
      return f(double{});
    case Dtype::kBFloat16:
      return f(BFloat16{});
    case Dtype::kFloat16:
      return f(Float16{});
    default:
      return f(float{});
  }
}

}  // namespace laser::cpu
