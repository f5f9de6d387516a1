// CusolverSolver on a host's cuSOLVER, and what the loader finds of the real one.
#include "cuda/dense_solvers.hpp"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <string>

#include "cuda/context.hpp"
#include "emulated.hpp"
#include "fake_cusolver.hpp"

namespace laser {
namespace {

// Full of NaN, with a fence behind it.
bool overrun = false;
std::shared_ptr<void> allocate(size_t bytes) {
  constexpr size_t kFence = 64;
  char* const data = static_cast<char*>(std::malloc(bytes + kFence));
  std::memset(data, 0xFF, bytes);
  std::memset(data + bytes, 0x5A, kFence);
  return {data, [bytes](void* p) {
            const char* fence = static_cast<char*>(p) + bytes;
            overrun = overrun || std::any_of(fence, fence + kFence, [](char c) { return c != 0x5A; });
            std::free(p);
          }};
}

CusolverSolver solver(bool has_batched, BatchLimits limits = {}, int64_t stream = 0) {
  install_cusolver(&fake_cusolver(has_batched));
  const Cusolver& table = *cusolver();
  install_cusolver(nullptr);
  return CusolverSolver(table, 0, reinterpret_cast<cudaStream_t>(stream), allocate, limits);
}

// Runs f and writes what was called, a line each, and the words of what was thrown.
template <typename F>
int told(char* text, const F& f) {
  std::string& journal = cusolver_journal();
  journal.clear();
  overrun = false;
  return guarded([&] {
    try {
      f();
    } catch (const OutOfMemory& error) {
      journal += std::string("out of memory: ") + error.what();
    } catch (const std::runtime_error& error) {
      journal += error.what();
    }
    std::strcpy(text, journal.c_str());
    if (overrun) {
      throw std::runtime_error("scratch was overrun");
    }
  });
}

}  // namespace
}  // namespace laser

using namespace laser;

// The scripted failures of one routine; -1 forgets them all.
EMU_EXPORT int emu_dense_script(int64_t routine, int64_t info_mask, int64_t info, int64_t status_mask, int64_t status,
                                int64_t perturbation_mask, double perturbation) {
  if (routine < 0) {
    forget_scripts();
  } else {
    follow(Routine(routine), {info_mask, info, status_mask, status, perturbation_mask, perturbation});
  }
  return 0;
}

EMU_EXPORT int emu_dense_eigh(void* h, const int64_t* h_strides, void* w, const int64_t* w_strides, double* theta,
                              int64_t is_double, int64_t count, int64_t l, const int* index, int64_t selected,
                              int64_t has_batched, int64_t max_bytes, int64_t max_matrices, char* text) {
  return told(text, [&] {
    CusolverSolver s = solver(has_batched != 0, {max_bytes, max_matrices});
    const auto run = [&](auto element) {
      using T = decltype(element);
      const Block<const T> from{static_cast<T*>(h), count, l, l, h_strides[0], h_strides[1], h_strides[2]};
      const Block<T> to{static_cast<T*>(w), count, l, l, w_strides[0], w_strides[1], w_strides[2]};
      s.eigh(from, to, theta, {index, int(selected)});
    };
    is_double ? run(double{}) : run(float{});
  });
}

EMU_EXPORT int emu_dense_svd(void* a, const int64_t* a_strides, void* u, const int64_t* u_strides, void* sigma,
                             void* vt, const int64_t* vt_strides, int* status, int64_t is_double, int64_t count,
                             int64_t m, int64_t n, const int* index, int64_t selected, char* text) {
  return told(text, [&] {
    CusolverSolver s = solver(true);
    const auto run = [&](auto element) {
      using T = decltype(element);
      const auto block = [count](void* data, int64_t rows, int64_t cols, const int64_t* strides) {
        return Block<T>{static_cast<T*>(data), count, rows, cols, strides[0], strides[1], strides[2]};
      };
      const Block<const T> from = block(a, m, n, a_strides);
      s.svd(from, block(u, m, n, u_strides), static_cast<T*>(sigma), block(vt, n, n, vt_strides),
            {index, int(selected)}, status);
    };
    is_double ? run(double{}) : run(float{});
  });
}

// How many handles each step created: a first solver, a second while the first lives, two more after both, one on
// another stream, one that is never asked.
EMU_EXPORT int emu_dense_handles(int64_t* out) {
  return guarded([&] {
    static int64_t stream = 0x1000;  // nobody else's
    stream += 0x1000;
    double h = 2, w, theta;
    int before = handles_created();
    out[6] = 1;
    const auto use = [&](CusolverSolver& s, int step, int64_t at) {
      const Block<double> one = Block<double>::dense(&h, 1, 1, 1);
      s.eigh(Block<const double>(one), Block<double>::dense(&w, 1, 1, 1), &theta, {nullptr, 1});
      out[step] = handles_created() - before;
      out[6] = out[6] && stream_of_last() == at;  // the work is on the solver's stream
      before = handles_created();
    };
    {
      CusolverSolver first = solver(true, {}, stream), second = solver(true, {}, stream);
      use(first, 0, stream);
      use(second, 1, stream);
    }
    CusolverSolver third = solver(true, {}, stream), fourth = solver(true, {}, stream);
    use(third, 2, stream);
    use(fourth, 3, stream);
    CusolverSolver fifth = solver(true, {}, stream + 8);
    use(fifth, 4, stream + 8);
    {
      CusolverSolver idle = solver(true, {}, stream + 16);
    }
    out[5] = handles_created() - before;
  });
}

// What the loader finds in this process, for tests/test_vendor.py: versions, or -1 where there is no library.
EMU_EXPORT int64_t emu_vendor_cusolver_version() {
  const Cusolver* table = cusolver();
  int version = -1;
  if (table) {
    table->GetVersion(&version);
  }
  return version;
}
EMU_EXPORT int64_t emu_vendor_has_batched() { return cusolver() && cusolver()->XsyevBatched; }
EMU_EXPORT const char* emu_vendor_cublas_string() { return cublas() ? cublas()->GetStatusString(0) : "none"; }
