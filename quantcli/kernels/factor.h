// The factors of second moments: H = U D U^T, U the upper triangle with a diagonal of ones, D diagonal.
//
// The triangle lies in blocks of PANEL x PANEL, those on and above the diagonal, block column by block column: what a
// step reads follows one another in memory. Columns are filled up to whole blocks by ones that nothing goes together
// with. Block columns are done from the last to the first; of each the diagonal block, the blocks above it, and then
// what it takes from the blocks before it. Every element is a float64 from which terms are subtracted one by one, in
// the same order however the work is cut, without contraction into fused multiply-adds: numpy_feedback.py gives the
// same bytes.

#pragma once

#include <algorithm>

#include "lanes64.h"

namespace {

constexpr int64_t PANEL = 64;
constexpr int64_t SQUARE = PANEL * PANEL;

// Where the block of a row and a column of blocks begins.
inline int64_t block_at(int64_t row, int64_t column) { return (column * (column + 1) / 2 + row) * SQUARE; }

inline Doubles load_doubles(const double* p) {
  Doubles v;
  std::memcpy(&v, p, sizeof v);
  return v;
}

inline void store_doubles(const Doubles& v, double* p) { std::memcpy(p, &v, sizeof v); }

constexpr int64_t SIXTEEN = 16;

// One column of blocks: U of it replaces what is left of H. raw, found: U D and U of the blocks above the diagonal by
// sixteen of their rows, then by column: rows that lie PANEL numbers apart would share a few lines of a cache.
struct Panel {
  double* triangle;
  int64_t own;
  double *raw, *found, *pivots;

  double* block(int64_t row, int64_t column) const { return triangle + block_at(row, column); }

  // The diagonal block; U D of it goes to its place in `raw` by column. Returns 0 where a pivot is not above `least`.
  int32_t diagonal(double least) const {
    double *const rows = block(own, own), *const turned = raw + own * SQUARE;
    for (int64_t m = PANEL - 1; m >= 0; --m) {
      const double pivot = rows[m * PANEL + m];
      pivots[own * PANEL + m] = pivot;
      if (!(pivot > least)) return 0;
      double* const column = turned + m * PANEL;
      for (int64_t j = 0; j < m; ++j) column[j] = rows[j * PANEL + m];
      for (int64_t j = 0; j < m; ++j) {
        double* const row = rows + j * PANEL;
        const double u = column[j] / pivot;
        row[m] = u;
        for (int64_t k = j; k < m; ++k) row[k] -= u * column[k];
      }
    }
    return 1;
  }

  // Blocks [from, to) above it.
  void above(int64_t from, int64_t to) const {
    for (int64_t p = from; p < to; ++p)
      for (int64_t j = 0; j < PANEL; j += SIXTEEN)
        solve(block(p, own) + j * PANEL, raw + p * SQUARE + j * PANEL, found + p * SQUARE + j * PANEL);
  }

  // Rows of blocks [from, to): those in the columns before it.
  void before(int64_t from, int64_t to) const {
    for (int64_t q = from; q < own; ++q)
      for (int64_t p = from; p < std::min(to, q + 1); ++p)
        for (int64_t j = 0; j < PANEL; j += DOWN)
          for (int64_t k = 0; k < PANEL; k += DOUBLES)
            part(found + p * SQUARE + place(j), raw + q * SQUARE + place(k), block(p, q) + j * PANEL + k);
  }

 private:
  // Rows that are subtracted from at once; see feedback.h.
#if defined(__AVX512F__)
  static constexpr int DOWN = 16;
#elif defined(__AVX__)
  static constexpr int DOWN = 8;
#else
  static constexpr int DOWN = 4;
#endif

  static int64_t place(int64_t row) { return row / SIXTEEN * SIXTEEN * PANEL + row % SIXTEEN; }

  // Sixteen rows of a block above the diagonal, side by side.
  void solve(double* rows, double* left, double* u) const {
    const double* const diagonal = raw + own * SQUARE;
    for (int64_t j = 0; j < SIXTEEN; ++j)
      for (int64_t m = 0; m < PANEL; ++m) left[m * SIXTEEN + j] = rows[j * PANEL + m];
    for (int64_t m = PANEL - 1; m >= 0; --m)
      for (int v = 0; v < SIXTEEN; v += DOUBLES) {
        const Doubles term = load_doubles(left + m * SIXTEEN + v) / all_of(pivots[own * PANEL + m]);
        store_doubles(term, u + m * SIXTEEN + v);
        for (int64_t k = 0; k < m; ++k) {
          double* const to = left + k * SIXTEEN + v;
          store_doubles(load_doubles(to) - term * all_of(diagonal[m * PANEL + k]), to);
        }
      }
    for (int64_t j = 0; j < SIXTEEN; ++j)
      for (int64_t m = 0; m < PANEL; ++m) rows[j * PANEL + m] = u[m * SIXTEEN + j];
  }

  // The rows after these, which come next, are asked for in time: without that it took a third longer.
  static void part(const double* u, const double* left, double* to) {
    Doubles sum[DOWN];
    for (int i = 0; i < DOWN; ++i) {
      sum[i] = load_doubles(to + i * PANEL);
      __builtin_prefetch(to + (i + DOWN) * PANEL);
    }
    for (int64_t m = 0; m < PANEL; ++m) {
      const Doubles term = load_doubles(left + m * SIXTEEN);
      for (int i = 0; i < DOWN; ++i) sum[i] = sum[i] - all_of(u[m * SIXTEEN + i]) * term;
    }
    for (int i = 0; i < DOWN; ++i) store_doubles(sum[i], to + i * PANEL);
  }
};

}  // namespace
