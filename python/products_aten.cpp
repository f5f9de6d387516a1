#include "products_aten.hpp"

#include <atomic>
#include <type_traits>

#include "aten.hpp"
#include "cpu/kernels.hpp"

// oneDNN's product in torch's C shim, of which AOTInductor's programs are made; null in a torch without oneDNN.
// Declared as in torch/csrc/inductor/aoti_torch/c/shim_cpu.h, which the stable ABI may not include.
extern "C" __attribute__((weak)) AOTITorchError aoti_torch_cpu__linear_pointwise(
    AtenTensorHandle x, AtenTensorHandle w, AtenTensorHandle* bias, const char* attr, const double** scalars,
    int64_t scalars_len, const char** algorithm, AtenTensorHandle* product);

namespace laser::aten {
namespace {

// Up to this side MKL forms a Gram matrix whole.
constexpr int64_t kGramWhole = 128;

// Flops from which a float32 product is oneDNN's: either library takes 20 us for as many, one thread.
constexpr double kOneDnnFlops = 2e6;

bool has_onednn() { return aoti_torch_cpu__linear_pointwise != nullptr; }

// x w^T in float32. w is row-major or column-major: for other strides oneDNN has loops a thousand times slower.
Tensor linear(const Tensor& x, const Tensor& w) {
  AtenTensorHandle product = nullptr;
  TORCH_ERROR_CODE_CHECK(
      aoti_torch_cpu__linear_pointwise(x.get(), w.get(), nullptr, "none", nullptr, 0, nullptr, &product));
  return Tensor(product);
}

// AMD's processors with AVX-512: MKL runs its AVX2 kernels there, 110 GF/s a core where oneDNN has 240 (DEVNOTES.md,
// "CPU schedule").
bool prefers_onednn() {
#if defined(__x86_64__)
  __builtin_cpu_init();
  return __builtin_cpu_is("amd") && __builtin_cpu_supports("avx512f");
#else
  return false;
#endif
}

std::atomic<bool> onednn{has_onednn() && prefers_onednn()};

bool row_major(const Block<const float>& x) { return x.col_stride == 1 && x.row_stride == x.cols; }

Tensor packed(const Block<const float>& x) {
  const Tensor viewed = view(x);
  return row_major(x) || row_major(x.transposed()) ? viewed : torch::stable::contiguous(viewed);
}

// The left operand of `linear` is copied where it is not row-major: so c = a (b^T)^T where a is, c^T = b^T a^T where
// b^T is, and where neither is, the smaller one goes left.
void multiply_onednn(Block<const float> a, Block<const float> b, Block<float> c) {
  const Block<const float> bt = b.transposed();
  const bool direct = row_major(a) || (!row_major(bt) && a.rows <= b.cols);
  copy_into(direct ? linear(view(a), packed(bt)) : linear(view(bt), packed(a)), direct ? c : c.transposed());
}

// The lower triangle of g = a^T a, and something above. ATen has no symmetric product: two halves by recursion and one
// product for the square between them, 53 % of the flops at n = 2048. oneDNN would copy the halves, and forms it whole.
template <typename T>
void lower_gram(Block<const T> a, Block<T> g) {
  const int64_t n = a.cols;
  if (n <= kGramWhole || (std::is_same_v<T, float> && a.count == 1 && onednn)) {
    multiply<T>(a.transposed(), a, g);
    return;
  }
  const int64_t half = (n / 2 + 15) / 16 * 16, rest = n - half;
  const Block<const T> left = a.columns(0, half), right = a.columns(half, rest);
  lower_gram<T>(left, g.corner(0, 0, half, half));
  multiply<T>(right.transposed(), left, g.corner(half, 0, rest, half));
  lower_gram<T>(right, g.corner(half, half, rest, rest));
}

}  // namespace

// For tests: large float32 products are oneDNN's from now on, or MKL's. Says what they were; -1 where torch has no
// oneDNN.
extern "C" __attribute__((visibility("default"))) int laser_multiply_by_onednn(int yes) {
  return has_onednn() ? onednn.exchange(yes != 0) : -1;
}

template <typename T>
void multiply(Block<const T> a, Block<const T> b, Block<T> c) {
  if constexpr (std::is_same_v<T, float>) {
    if (c.count == 1 && 2.0 * double(a.rows) * double(a.cols) * double(c.cols) >= kOneDnnFlops && onednn) {
      multiply_onednn(a, b, c);
      return;
    }
  }
  auto stack = call(c.count == 1 ? "aten::mm" : "aten::bmm", "out", view(a), view(b), view(c));
  take(stack[0]);
}

// ATen rounds the sums to bfloat16 once, when it stores them.
template <typename T>
void multiply_half(Block<const BFloat16> a, Block<const T> b, Block<T> c) {
  Tensor rounded = torch::stable::new_empty(view(b), view(b).sizes(), ScalarType::BFloat16);
  torch::stable::copy_(rounded, view(b));
  auto stack = call(c.count == 1 ? "aten::mm" : "aten::bmm", "", view(a), rounded);
  copy_into(take(stack[0]), c);
}

template <typename T>
void gram(Block<const T> a, Block<T> g) {
  lower_gram(a, g);
  for (int64_t b = 0; b < g.count; ++b) {
    cpu::mirror(g.matrix(b));
  }
}

#define LASER_PRODUCTS(T)                                                          \
  template void multiply<T>(Block<const T>, Block<const T>, Block<T>);             \
  template void multiply_half<T>(Block<const BFloat16>, Block<const T>, Block<T>); \
  template void gram<T>(Block<const T>, Block<T>)
LASER_PRODUCTS(float);
LASER_PRODUCTS(double);

}  // namespace laser::aten
