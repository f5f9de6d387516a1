// laser_kernels._core: build facts and the pure functions of the core, for tests and for callers
// without torch.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <string>
#include <vector>

#include "core/certificate.hpp"
#include "core/kernel_polynomial.hpp"
#include "core/philox.hpp"
#include "core/sign_quintics.hpp"

namespace py = pybind11;

namespace {

// Instructions for bfloat16 products, without which those are slower than float32 ones.
bool cpu_multiplies_bfloat16() {
#if defined(__x86_64__)
  return __builtin_cpu_supports("avx512bf16");
#else
  return false;
#endif
}

}  // namespace

PYBIND11_MODULE(_core, m) {
  m.attr("built_with_cuda") = bool(LASER_BUILT_CUDA);
  m.attr("cpu_multiplies_bfloat16") = cpu_multiplies_bfloat16();
  m.def(
      "philox4x32",
      [](std::vector<uint32_t> counter, uint32_t key0, uint32_t key1) {
        const laser::Philox4x32 r =
            laser::philox4x32({{counter.at(0), counter.at(1), counter.at(2), counter.at(3)}}, key0, key1);
        return std::vector<uint32_t>(r.word, r.word + 4);
      },
      py::arg("counter"), py::arg("key0"), py::arg("key1"), "The ten-round generator, for its known-answer test.");
  m.def(
      "perturbation_loss",
      [](const std::vector<double>& eigenvalues, int64_t rank, double error) {
        return laser::perturbation_loss(laser::SerialTeam{}, eigenvalues.data(), int64_t(eigenvalues.size()), rank,
                                        error);
      },
      py::arg("eigenvalues"), py::arg("rank"), py::arg("error"),
      "Energy a rank-r truncation may lose to a perturbation with entries of size `error` "
      "(csrc/core/certificate.hpp).");
  m.def("level_of", laser::level_of, py::arg("moments"), py::arg("count"),
        "The t above which `count` eigenvalues lie, from Chebyshev moments (csrc/core/kernel_polynomial.hpp).");
  m.def("sum_below", laser::sum_below, py::arg("moments"), py::arg("t"),
        "Sum of (1 + x) / (1 - x) over the eigenvalues x below t (csrc/core/kernel_polynomial.hpp).");
  m.def(
      "sign_quintics",
      [](double low, double error) {
        std::vector<std::vector<double>> steps;
        for (const laser::Quintic& q : laser::sign_quintics(low, error)) {
          steps.push_back({q.a, q.b, q.c});
        }
        return steps;
      },
      py::arg("low"), py::arg("error"),
      "(a, b, c) of a x + b x^3 + c x^5, one after another (csrc/core/sign_quintics.hpp).");
}
