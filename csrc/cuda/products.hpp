// Matrix products of blocks by cuBLAS.
#pragma once
#include "core/block.hpp"
#include "core/dtype.hpp"
#include "cuda/context.hpp"
#include "cuda/selection.hpp"

namespace laser {

// The matrices of a batch that a product is about, as the host knows them.
struct Batch {
  int64_t first;        // of neighbours, first .. first + count - 1; -1: they are not
  Selection selection;  // for kernels; its count says how many
  void** addresses;     // scratch in device memory, 3 (count + 1) pointers, where not neighbours
};

// c = alpha a b + beta c. (E, T) = (float, float), (double, double) or (BFloat16, float); sums are T. Each block has
// one unit stride.
template <typename E, typename T>
void multiply(const CudaContext& context, Block<const E> a, Block<const E> b, Block<T> c, T beta, const Batch& batch,
              T alpha = T(1));

// While it lives, float32 products of the context's handle are float32 (no TF32), and split sums are not rounded.
class ExactMath {
 public:
  explicit ExactMath(const CudaContext& context);
  ~ExactMath();
  ExactMath(const ExactMath&) = delete;

 private:
  const CudaContext& context_;
  int before_ = 0;
};

}  // namespace laser
