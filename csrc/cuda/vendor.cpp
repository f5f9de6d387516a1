#include "cuda/vendor.hpp"

#include <dlfcn.h>

#include <atomic>
#include <string>
#include <vector>

namespace laser {
namespace {

template <typename F>
bool find(void* library, const char* name, F& function) {
  function = reinterpret_cast<F>(dlsym(library, name));
  return function != nullptr;
}

bool fill(void* library, Cublas& t) {
  return find(library, "cublasGemmEx_64", t.GemmEx) &&
         find(library, "cublasGemmStridedBatchedEx_64", t.GemmStridedBatchedEx) &&
         find(library, "cublasGemmBatchedEx_64", t.GemmBatchedEx) &&
         find(library, "cublasGetMathMode", t.GetMathMode) && find(library, "cublasSetMathMode", t.SetMathMode) &&
         find(library, "cublasGetStatusString", t.GetStatusString);
}

bool fill(void* library, Cusolver& t) {
  if (!find(library, "cusolverDnXsyevBatched", t.XsyevBatched) ||
      !find(library, "cusolverDnXsyevBatched_bufferSize", t.XsyevBatched_bufferSize)) {
    t.XsyevBatched = nullptr;
  }
  return find(library, "cusolverGetVersion", t.GetVersion) && find(library, "cusolverDnCreate", t.Create) &&
         find(library, "cusolverDnDestroy", t.Destroy) && find(library, "cusolverDnSetStream", t.SetStream) &&
         find(library, "cusolverDnCreateParams", t.CreateParams) &&
         find(library, "cusolverDnDestroyParams", t.DestroyParams) &&
         find(library, "cusolverDnCreateGesvdjInfo", t.CreateGesvdjInfo) &&
         find(library, "cusolverDnDestroyGesvdjInfo", t.DestroyGesvdjInfo) &&
         find(library, "cusolverDnXsyevd_bufferSize", t.Xsyevd_bufferSize) &&
         find(library, "cusolverDnXsyevd", t.Xsyevd) &&
         find(library, "cusolverDnXgesvdp_bufferSize", t.Xgesvdp_bufferSize) &&
         find(library, "cusolverDnXgesvdp", t.Xgesvdp) &&
         find(library, "cusolverDnSgesvdj_bufferSize", t.Sgesvdj_bufferSize) &&
         find(library, "cusolverDnSgesvdj", t.Sgesvdj) &&
         find(library, "cusolverDnDgesvdj_bufferSize", t.Dgesvdj_bufferSize) &&
         find(library, "cusolverDnDgesvdj", t.Dgesvdj) &&
         find(library, "cusolverDnXgesvd_bufferSize", t.Xgesvd_bufferSize) &&
         find(library, "cusolverDnXgesvd", t.Xgesvd);
}

// Where the process has one of the libraries already, that one: torch's handle and another release's functions do not
// go together, and a newer one may lie on the search path. It is never closed.
template <typename Table>
const Table* load(const std::vector<std::string>& names, const std::vector<std::string>& folders) {
  static Table table{};
  const auto opened = [](const std::string& name, int mode) {
    void* library = dlopen(name.c_str(), RTLD_LAZY | RTLD_LOCAL | mode);
    return library && fill(library, table);
  };
  for (const std::string& name : names) {
    if (opened(name, RTLD_NOLOAD)) {
      return &table;
    }
  }
  for (const std::string& folder : folders) {
    for (const std::string& name : names) {
      if (opened(folder + name, 0)) {
        return &table;
      }
    }
  }
  return nullptr;
}

// Where the function's library lies, and where NVIDIA's wheels for CUDA 12 put libcusolver beside it.
std::vector<std::string> beside(const void* function) {
  Dl_info info;
  if (!dladdr(function, &info) || !info.dli_fname) {
    return {};
  }
  const std::string path = info.dli_fname, folder = path.substr(0, path.rfind('/') + 1);
  return {folder, folder + "../../cusolver/lib/"};
}

std::atomic<const Cublas*> installed_cublas{nullptr};
std::atomic<const Cusolver*> installed_cusolver{nullptr};

}  // namespace

const Cublas* cublas() {
  if (const Cublas* table = installed_cublas.load()) {
    return table;
  }
  static const Cublas* const loaded = [] {
    // Through torch's library, where it is loaded: another package may have brought another release.
    const Cublas* of_torch = load<Cublas>({"libtorch_cuda.so"}, {});
    return of_torch ? of_torch : load<Cublas>({"libcublas.so.13", "libcublas.so.12"}, {""});
  }();
  return loaded;
}

const Cusolver* cusolver() {
  if (const Cusolver* table = installed_cusolver.load()) {
    return table;
  }
  static const Cusolver* const loaded = [] {
    // torch loads libcusolver late and by a path of its own, so that a search by name alone may not see it.
    const Cublas* blas = cublas();
    std::vector<std::string> folders;
    if (blas) {
      folders = beside(reinterpret_cast<const void*>(blas->GemmEx));
    }
    folders.push_back("");
    return load<Cusolver>({"libcusolver.so.12", "libcusolver.so.11"}, folders);
  }();
  return loaded;
}

const char* cusolver_status_name(int status) {
#define LASER_NAME(code) \
  case code:             \
    return #code
  switch (status) {
    LASER_NAME(CUSOLVER_STATUS_SUCCESS);
    LASER_NAME(CUSOLVER_STATUS_NOT_INITIALIZED);
    LASER_NAME(CUSOLVER_STATUS_ALLOC_FAILED);
    LASER_NAME(CUSOLVER_STATUS_INVALID_VALUE);
    LASER_NAME(CUSOLVER_STATUS_ARCH_MISMATCH);
    LASER_NAME(CUSOLVER_STATUS_MAPPING_ERROR);
    LASER_NAME(CUSOLVER_STATUS_EXECUTION_FAILED);
    LASER_NAME(CUSOLVER_STATUS_INTERNAL_ERROR);
    LASER_NAME(CUSOLVER_STATUS_MATRIX_TYPE_NOT_SUPPORTED);
    LASER_NAME(CUSOLVER_STATUS_NOT_SUPPORTED);
    LASER_NAME(CUSOLVER_STATUS_INVALID_WORKSPACE);
  }
#undef LASER_NAME
  return "an unknown cuSOLVER status";
}

void install_cublas(const Cublas* table) { installed_cublas = table; }
void install_cusolver(const Cusolver* table) { installed_cusolver = table; }

}  // namespace laser
