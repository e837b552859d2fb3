// Codes of a codebook: nearest level by thresholds, and the sums for learning levels.

#pragma once

#include "common.h"
#include "floats.h"

namespace {

constexpr int MOST_TRIALS = LIMITS.trials;
constexpr int FEW_LEVELS = 16;  // 16 levels fit two vectors, and comparing with each beats a binary search

// One codebook: levels by code; levels, codes and thresholds in ascending order; where clipping begins.
struct Table {
  const float *levels, *sorted, *thresholds;
  const uint16_t* order;
  float low, high;
  int count;
  Small small;
};

inline Table table_of(const Codebook* book, int64_t row) {
  if (!book) return {nullptr, nullptr, nullptr, nullptr, 0, 0, 0, {-1, 0, 0}};
  const int64_t at = book->tables > 1 ? row : 0;
  int64_t width = 1;  // thresholds are filled up to 2^m - 1 by infinity, for the binary search
  while (width < book->count) width *= 2;
  return {book->levels + at * book->size, book->sorted + at * book->count, book->thresholds + at * (width - 1),
          book->order + at * book->count, book->limits[2 * at],     book->limits[2 * at + 1], book->count,
          book->small};
}

// Places of n <= LANES values among the thresholds: how many are smaller.
inline void place(const float* t, int n, const float* thresholds, int count, int32_t* at) {
  for (int i = 0; i < n; ++i) at[i] = 0;
  if (count <= FEW_LEVELS) {
    for (int k = 0; k + 1 < count; ++k) {
      const float threshold = thresholds[k];
      for (int i = 0; i < n; ++i) at[i] += t[i] > threshold;
    }
    return;
  }
  int step = 1;
  while (2 * step < count) step *= 2;
  for (; step; step /= 2)
    for (int i = 0; i < n; ++i) at[i] += t[i] > thresholds[at[i] + step - 1] ? step : 0;
}

inline void quantize_levels(const float* x, int n, float scale, const Table& table, float* code, float* error,
                            int32_t* clipped) {
  if (table.small.mantissa >= 0) {
    quantize_floats(x, n, scale, table.small, table.low, table.high, code, error, clipped);
    return;
  }
  float t[LANES];
  int32_t at[LANES];
  const float divisor = scale == 0 ? 1.0f : scale;  // only groups of zeros have no scale
  for (int i = 0; i < n; ++i) t[i] = x[i] / divisor;
  place(t, n, table.thresholds, table.count, at);
  for (int i = 0; i < n; ++i) clipped[i] += (t[i] < table.low) | (t[i] > table.high);
  for (int i = 0; i < n; ++i) {
    code[i] = float(table.order[at[i]]);
    error[i] = x[i] - table.sorted[at[i]] * scale;
  }
}

inline void reconstruct_levels(const float* code, int n, float scale, const Table& table, float* out) {
  for (int i = 0; i < n; ++i) out[i] = table.levels[int32_t(code[i])] * scale;
}

// Levels of the places in a table of up to FEW_LEVELS, padded to as many.
inline Eight look_up(const Eight* table, EightInts at) {
#ifdef __clang__
  Eight found;
  for (int i = 0; i < W; ++i) found[i] = table[at[i] > 7][at[i] & 7];
  return found;
#else
  const Eight low = __builtin_shuffle(table[0], at & 7), high = __builtin_shuffle(table[1], at & 7);
  return at > 7 ? high : low;
#endif
}

struct Fit {
  float cross, square;  // sum(x l), sum(l l)
};

// Sums over a block of vectors for the levels nearest to x * reciprocal.
inline Fit fit_levels(const float* x, int vectors, float reciprocal, const Table& table, const Eight* sixteen) {
  Eight cross = {}, square = {};
  for (int i = 0; i < vectors; ++i) {
    Eight v;
    std::memcpy(&v, x + i * W, sizeof v);
    const Eight t = v * reciprocal;
    Eight l;
    if (table.count <= FEW_LEVELS) {
      EightInts at = {};
      for (int k = 0; k + 1 < table.count; ++k) at -= t > table.thresholds[k];
      l = look_up(sixteen, at);
    } else {
      float q[W];
      int32_t at[W];
      std::memcpy(q, &t, sizeof q);
      place(q, W, table.thresholds, table.count, at);
      for (int j = 0; j < W; ++j) l[j] = table.sorted[at[j]];
    }
    cross += v * l;
    square += l * l;
  }
  const Pair sums = fold(cross, square);
  return {sums.first, sums.second};
}

}  // namespace
