// GRAM_EIGH: G = A^T A and a dense symmetric eigensolver; optimal up to the rounding of G.
// The loss is bounded by perturbation_loss (certificate.hpp).
#include <cmath>

#include "core/truncated_svd.hpp"

namespace laser {
namespace {

// Size of the perturbation that forming G and the eigensolver's backward error amount to, entry by
// entry in G's own eigenbasis, in units of eps lambda_1 (DEVNOTES.md, "Certificate").
constexpr double kGramError = 12.0;

}  // namespace

template <typename T>
int64_t gram_eigh_workspace(const SvdProblem<T>& p) {
  return 2 * p.weight.count * p.weight.cols * p.weight.cols;
}

template <typename T>
void gram_eigh(Linalg<T>& la, const SvdProblem<T>& p, T* workspace, const SvdResult<T>& out) {
  const int64_t count = p.weight.count, n = p.weight.cols;
  const Block<T> g = Block<T>::dense(workspace, count, n, n);
  const Block<T> w = Block<T>::dense(workspace + count * n * n, count, n, n);
  std::vector<double> lambda(count * n), captured(count);

  la.gram(p.weight, g);
  la.small_eigh(g, w, lambda.data());
  for (int64_t b = 0; b < count; ++b) {  // a copy, so that right is dense
    const Block<T> from = w.matrix(b), to = out.right.matrix(b);
    for (int64_t i = 0; i < n; ++i) {
      for (int64_t j = 0; j < p.rank; ++j) {
        to.at(0, i, j) = from.at(0, i, j);
      }
    }
  }
  la.multiply(p.weight, out.right, out.left);
  la.squared_norm(out.left, captured.data());
  for (int64_t b = 0; b < count; ++b) {
    const double* lam = &lambda[b * n];
    const double loss = perturbation_loss(lam, n, p.rank, kGramError * p.tolerance.eps * lam[0]);
    out.remainder[b] = std::max(p.norm2[b] - captured[b], 0.0);
    out.status[b] = judge_exact(loss, out.remainder[b], p.norm2[b], p.tolerance, out.bound[b]);
    out.iterations[b] = 0;
  }
}

template int64_t gram_eigh_workspace(const SvdProblem<float>&);
template int64_t gram_eigh_workspace(const SvdProblem<double>&);
template void gram_eigh(Linalg<float>&, const SvdProblem<float>&, float*, const SvdResult<float>&);
template void gram_eigh(Linalg<double>&, const SvdProblem<double>&, double*, const SvdResult<double>&);

}  // namespace laser
