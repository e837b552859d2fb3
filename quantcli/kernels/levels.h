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

// Adds the counts of the 16-bit patterns to counts[65536]. Returns 0 when a weight is not finite.
QK_EXPORT int32_t QK_NAME(patterns)(const uint16_t* weights, int64_t n, int32_t kind, int64_t* counts) {
  // Four tables in turn: neighbours are often equal, and a count must not wait for the one before it.
  static thread_local uint32_t part[4][65536];
  std::memset(part, 0, sizeof part);
  int64_t i = 0;
  for (; i + 4 <= n; i += 4) {
    uint64_t four;
    std::memcpy(&four, weights + i, 8);
    ++part[0][four & 0xffff];
    ++part[1][four >> 16 & 0xffff];
    ++part[2][four >> 32 & 0xffff];
    ++part[3][four >> 48];
  }
  for (; i < n; ++i) ++part[0][weights[i]];
  uint32_t bad = 0;
  const uint32_t special = kind == BF16 ? 0x7f80 : 0x7c00;
  for (uint32_t p = 0; p < 65536; ++p) {
    const uint32_t sum = part[0][p] + part[1][p] + part[2][p] + part[3][p];
    bad |= (p & special) == special ? sum : 0;
    counts[p] += sum;
  }
  return bad == 0;
}

// Adds to counts[2^20] how many float32 weights share their upper 20 bits, and to lows[2^20] the sum of their lower 12.
QK_EXPORT int32_t QK_NAME(bins)(const float* weights, int64_t n, int64_t* counts, int64_t* lows) {
  uint32_t bad = 0;
  for (int64_t i = 0; i < n; ++i) {
    const uint32_t bits = to_bits(weights[i]);
    bad |= (bits & 0x7f800000u) == 0x7f800000u;
    ++counts[bits >> 12];
    lows[bits >> 12] += bits & 0xfff;
  }
  return bad == 0;
}

// For every group the trial scale, one of `trials`, that leaves the least squared error with the levels of a codebook
// (the first of equal ones), and, where wanted, for every level the sums over its weights of scale * x and scale^2.
QK_EXPORT void QK_NAME(trial_levels)(const Tile* tile, const Codebook* book, const float* trial, int32_t trials,
                                     int32_t* best, double* cross, double* square) {
  const Table table = table_of(book, 0);
  Eight sixteen[2];
  float padded[FEW_LEVELS];
  for (int i = 0; i < FEW_LEVELS; ++i) padded[i] = table.sorted[i < table.count ? i : table.count - 1];
  std::memcpy(sixteen, padded, sizeof padded);
  const int64_t groups = (tile->cols + tile->group - 1) / tile->group;
  float x[BLOCK];
  int32_t at[LANES];
  for (int64_t row = 0; row < tile->rows; ++row)
    for (int64_t g = 0; g < groups; ++g) {
      const int64_t begin = g * tile->group, here = row * groups + g;
      const int64_t n = (begin + tile->group < tile->cols ? begin + tile->group : tile->cols) - begin;
      const float* own = trial + here * trials;
      double crosses[MOST_TRIALS] = {}, squares[MOST_TRIALS] = {};
      for (int64_t first = 0; first < n; first += BLOCK) {
        const int m = int(n - first < BLOCK ? n - first : BLOCK);
        for (int from = 0; from < m; from += LANES)
          load(tile->weights, tile->kind, row * tile->cols + begin + first + from, m - from < LANES ? m - from : LANES,
               x + from);
        int whole = m / W;
        for (int k = 0; k < trials; ++k) {
          const Fit fit = fit_levels(x, whole, 1.0f / own[k], table, sixteen);
          crosses[k] += double(fit.cross);
          squares[k] += double(fit.square);
          for (int i = whole * W; i < m; ++i) {  // the rest, which does not fill a vector
            const float t = x[i] * (1.0f / own[k]);
            int32_t where;
            place(&t, 1, table.thresholds, table.count, &where);
            const float l = table.sorted[where];
            crosses[k] += double(x[i] * l);
            squares[k] += double(l * l);
          }
        }
      }
      double least = INFINITY;
      for (int k = 0; k < trials; ++k) {
        const double s = own[k], error = s * (s * squares[k] - 2 * crosses[k]);
        if (error < least) least = error, best[here] = k;
      }
      if (!cross) continue;
      const float scale = own[best[here]], reciprocal = 1.0f / scale;
      for (int64_t first = 0; first < n; first += LANES) {
        const int m = int(n - first < LANES ? n - first : LANES);
        load(tile->weights, tile->kind, row * tile->cols + begin + first, m, x);
        float t[LANES];
        for (int i = 0; i < m; ++i) t[i] = x[i] * reciprocal;
        place(t, m, table.thresholds, table.count, at);
        for (int i = 0; i < m; ++i) {
          cross[at[i]] += double(scale) * double(x[i]);
          square[at[i]] += double(scale) * double(scale);
        }
      }
    }
}
