#pragma once
#include <vector>

#include "core/linalg.hpp"

namespace laser {

// x (count, n, l) <- an orthonormal basis of its columns, in place; n >= l. Columns that depend on
// the others are replaced by arbitrary orthonormal ones. gram, factor: scratch (count, l, l);
// failed: scratch, count ints. Ref: Fukaya, Kannan, Nakatsukasa, Yamamoto, Yanagisawa: Shifted
// CholeskyQR (SISC 2020, arXiv 1809.11085).
template <typename T>
void orthonormalize(Linalg<T>& la, Block<T> x, Block<T> gram, Block<T> factor, std::vector<int>& failed);

}  // namespace laser
