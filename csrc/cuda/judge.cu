#include "cuda/judge.cuh"
#include "cuda/judge.hpp"

namespace laser {

cudaError_t find_defects(const double* deviation, const int* shifted, int* defect, Selection sel, cudaStream_t stream) {
  return launch(find_defects_kernel, dim3((sel.count + 127) / 128), dim3(128), 0, stream, deviation, shifted, defect,
                sel);
}

cudaError_t judge(const RitzStep& step, Selection sel, cudaStream_t stream) {
  return launch(judge_kernel, dim3(sel.count), dim3(kJudgeThreads), 0, stream, step, sel);
}

cudaError_t judge_exact(const ExactStep& step, Selection sel, cudaStream_t stream) {
  return launch(judge_exact_kernel, dim3(sel.count), dim3(kJudgeThreads), 0, stream, step, sel);
}

}  // namespace laser
