// GRAM_EIGH: G = A^T A and a dense symmetric eigensolver; optimal up to the rounding of G.
// The loss is bounded by perturbation_loss (certificate.hpp).
#include "core/truncated_svd.hpp"

namespace laser {

ScratchSize gram_eigh_scratch(const SvdProblem& p) { return {2 * p.count * p.cols * p.cols, p.count * (p.cols + 1)}; }

template <typename T>
void gram_eigh(Linalg<T>& la, const SvdProblem& p, const Scratch<T>& scratch, const SvdResult<T>& out) {
  const int64_t count = p.count, n = p.cols;
  const Block<T> g = Block<T>::dense(scratch.elements, count, n, n);
  const Block<T> w = Block<T>::dense(scratch.elements + count * n * n, count, n, n);
  double *lambda = scratch.doubles, *captured = lambda + count * n;

  la.weight_gram(g);
  la.small_eigh(g, w, lambda);
  la.copy(w.first_columns(p.rank), out.right);
  if (p.ranks) {
    la.truncate(out.right, p.ranks);  // what is captured is counted from it
  }
  la.forward(out.right, out.left, Precision::kFull);
  la.dot(out.left, out.left, captured);
  la.judge_exact({lambda, captured, p.norm2, out.progress, p.rank, n, certificate::kGramError * p.tolerance.eps,
                  p.tolerance, p.ranks});
}

template void gram_eigh(Linalg<float>&, const SvdProblem&, const Scratch<float>&, const SvdResult<float>&);
template void gram_eigh(Linalg<double>&, const SvdProblem&, const Scratch<double>&, const SvdResult<double>&);

}  // namespace laser
