// A host's cuSOLVER for CusolverSolver: Jacobi methods behind the documented arguments, which are checked, with
// failures as the tests ask for them.
#pragma once
#include <cstdint>
#include <string>

#include "cuda/vendor.hpp"

namespace laser {

enum Routine { kSyevBatched, kSyevd, kGesvdp, kGesvd, kGesvdj, kRoutines };

// Failures of one routine. Bit k of a mask: the k-th matrix (info, perturbation) or the k-th call (status).
struct Script {
  int64_t info_mask, info, status_mask, status, perturbation_mask;
  double perturbation;
};

// Without XsyevBatched: as libraries before CUDA 12.6 are.
const Cusolver& fake_cusolver(bool has_batched);

void follow(Routine routine, const Script& script);
// Nothing fails from here on, and matrices and calls are counted from 0.
void forget_scripts();

// What was called, a line each.
std::string& cusolver_journal();

// Handles made until now.
int handles_created();

// The stream of the handle that the last eigenproblem came with.
int64_t stream_of_last();

}  // namespace laser
