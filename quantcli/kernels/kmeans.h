// Globally optimal one-dimensional k-means: dynamic programming over sorted values.
//
// The best k cells of the first j values end in a cell [i, j) after the best k - 1 cells of the first i; the best i
// never falls as j rises, so each layer is found by halving the range of j (divide and conquer). The cost of a cell
// comes from sums over all values before its ends. numpy_kmeans.py does the same arithmetic in the same order.

#pragma once

#include "common.h"

namespace {

struct Cells {
  const double *weight, *sum, *square;  // over the values before each place, n + 1 of them

  double cost(int64_t i, int64_t j) const {
    const double w = weight[j] - weight[i], s = sum[j] - sum[i];
    return (square[j] - square[i]) - s * s / w;
  }

  // Best starts of the last cell for ends in [from, to], which lie in [low, high]; the smallest of equal ones.
  void layer(const double* before, double* after, int32_t* start, int64_t from, int64_t to, int64_t low,
             int64_t high) const {
    if (from > to) return;
    const int64_t j = (from + to) / 2;
    int64_t best = low;
    double least = INFINITY;
    for (int64_t i = low; i <= high && i < j; ++i) {
      const double found = before[i] + cost(i, j);
      if (found < least) least = found, best = i;
    }
    after[j] = least;
    start[j] = int32_t(best);
    layer(before, after, start, from, j - 1, low, best);
    layer(before, after, start, j + 1, to, best, high);
  }
};

}  // namespace
