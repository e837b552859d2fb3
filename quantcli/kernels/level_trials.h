// Trial scales of groups for the levels of a codebook, and the sums for learning levels.

#pragma once

#include "levels.h"

namespace {

constexpr int MOST_TRIALS = LIMITS.trials;

struct Fit {
  float cross, square;  // sum(x l), sum(l l)
};

// Sums over a block of vectors for the levels nearest to x * reciprocal.
inline Fit fit_levels(const float* x, int vectors, float reciprocal, const Table& table) {
  Eight cross = {}, square = {};
  for (int i = 0; i < vectors; ++i) {
    Eight v;
    std::memcpy(&v, x + i * W, sizeof v);
    const Eight t = v * reciprocal;
    Eight l;
    if (table.is_few()) {
      l = table.levels_of.at(table.few.place(t));
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

#if defined(__AVX512BW__) && defined(__AVX512VL__) && defined(__AVX512DQ__)

// A table of up to FEW_LEVELS levels for two trial scales at a time: eight weights by each, in the halves of a register.
struct FewForTwo {
  __m512 half, first, third, quarters, eighths, levels;

  explicit FewForTwo(const Table& table)
      : half(_mm512_set1_ps(table.few.half)),
        first(_mm512_set1_ps(table.few.first)),
        third(_mm512_set1_ps(table.few.third)),
        quarters(both(table.few.quarters)),
        eighths(both(table.few.eighths)),
        levels(both(table.levels_of)) {}

  static __m512 both(const Few& values) { return _mm512_loadu_ps(&values); }

  // The levels nearest to quotients: each step of a binary search looks up the thresholds of the next.
  __m512 nearest(__m512 t) const {
    const __m512i one = _mm512_set1_epi32(1);
    const __mmask16 upper = _mm512_cmp_ps_mask(t, half, _CMP_GT_OQ);
    __m512i at = _mm512_maskz_mov_epi32(upper, _mm512_set1_epi32(2));
    at = after(at, t, _mm512_mask_blend_ps(upper, first, third), one);
    at = after(_mm512_add_epi32(at, at), t, _mm512_permutexvar_ps(at, quarters), one);
    at = after(_mm512_add_epi32(at, at), t, _mm512_permutexvar_ps(at, eighths), one);
    return _mm512_permutexvar_ps(at, levels);
  }

  static __m512i after(__m512i at, __m512 t, __m512 threshold, __m512i one) {
    return _mm512_mask_add_epi32(at, _mm512_cmp_ps_mask(t, threshold, _CMP_GT_OQ), at, one);
  }

  // The sums of each half by halves, as `fold` adds them up, in the first lane of each.
  static __m512 folded(__m512 v) {
    v = _mm512_add_ps(v, _mm512_shuffle_f32x4(v, v, _MM_SHUFFLE(2, 3, 0, 1)));
    v = _mm512_add_ps(v, _mm512_permute_ps(v, _MM_SHUFFLE(1, 0, 3, 2)));
    return _mm512_add_ps(v, _mm512_permute_ps(v, _MM_SHUFFLE(2, 3, 0, 1)));
  }

  void fit(const float* x, int vectors, const float* reciprocal, Fit* found) const {
    const __m512 by = _mm512_insertf32x8(_mm512_set1_ps(reciprocal[0]), _mm256_set1_ps(reciprocal[1]), 1);
    __m512 cross = _mm512_setzero_ps(), square = cross;
    for (int i = 0; i < vectors; ++i) {
      const __m512 v = _mm512_broadcast_f32x8(_mm256_loadu_ps(x + i * W)), l = nearest(_mm512_mul_ps(v, by));
      cross = _mm512_add_ps(cross, _mm512_mul_ps(v, l));
      square = _mm512_add_ps(square, _mm512_mul_ps(l, l));
    }
    cross = folded(cross), square = folded(square);
    found[0] = {_mm512_cvtss_f32(cross), _mm512_cvtss_f32(square)};
    found[1] = {_mm256_cvtss_f32(_mm512_extractf32x8_ps(cross, 1)),
                _mm256_cvtss_f32(_mm512_extractf32x8_ps(square, 1))};
  }
};

inline void fit_two(const float* x, int vectors, const float* reciprocal, const Table& table, Fit* found) {
  if (table.is_few()) return FewForTwo(table).fit(x, vectors, reciprocal, found);
  for (int k = 0; k < 2; ++k) found[k] = fit_levels(x, vectors, reciprocal[k], table);
}

#else

inline void fit_two(const float* x, int vectors, const float* reciprocal, const Table& table, Fit* found) {
  for (int k = 0; k < 2; ++k) found[k] = fit_levels(x, vectors, reciprocal[k], table);
}

#endif

// The trial scales of a group of a row, and sums for each.
struct LevelTrials {
  const Tile& tile;
  const Table& table;
  int trials;
  float x[BLOCK];
  float reciprocal[MOST_TRIALS + 1];
  double crosses[MOST_TRIALS], squares[MOST_TRIALS];

  LevelTrials(const Tile& tile, const Table& table, int trials) : tile(tile), table(table), trials(trials) {}

  // The first trial with the least squared error of the n weights from `at` on.
  int best(int64_t at, int64_t n, const float* own) {
    for (int k = 0; k < trials; ++k) crosses[k] = squares[k] = 0, reciprocal[k] = 1.0f / own[k];
    reciprocal[trials] = reciprocal[trials - 1];
    for (int64_t first = 0; first < n; first += BLOCK) {
      const int m = int(n - first < BLOCK ? n - first : BLOCK), whole = m / W;
      for (int from = 0; from < m; from += LANES)
        load(tile.weights, tile.kind, at + first + from, m - from < LANES ? m - from : LANES, x + from);
      for (int k = 0; k < trials; k += 2) {
        Fit found[2];
        fit_two(x, whole, reciprocal + k, table, found);
        for (int i = 0; i < 2 && k + i < trials; ++i) {
          crosses[k + i] += double(found[i].cross);
          squares[k + i] += double(found[i].square);
        }
      }
      for (int i = whole * W; i < m; ++i) add_rest(x[i]);
    }
    int found = 0;
    double least = INFINITY;
    for (int k = 0; k < trials; ++k) {
      const double s = own[k], error = s * (s * squares[k] - 2 * crosses[k]);
      if (error < least) least = error, found = k;
    }
    return found;
  }

  // One of the weights that do not fill a vector.
  void add_rest(float v) {
    for (int k = 0; k < trials; ++k) {
      const float t = v * reciprocal[k];
      int32_t where;
      place(&t, 1, table.thresholds, table.count, &where);
      const float l = table.sorted[where];
      crosses[k] += double(v * l);
      squares[k] += double(l * l);
    }
  }

  // Adds scale * x and scale^2 of n weights to the sums of their levels.
  void add_up(int64_t at, int64_t n, float scale, double* cross, double* square) {
    const float by = 1.0f / scale;
    const double own = double(scale) * double(scale);
    float t[LANES];
    int32_t places[LANES];
    for (int64_t first = 0; first < n; first += LANES) {
      const int m = int(n - first < LANES ? n - first : LANES);
      load(tile.weights, tile.kind, at + first, m, x);
      for (int i = 0; i < m; ++i) t[i] = x[i] * by;
      place(t, m, table.thresholds, table.count, places);
      for (int i = 0; i < m; ++i) {
        cross[places[i]] += double(scale) * double(x[i]);
        square[places[i]] += own;
      }
    }
  }
};

}  // namespace
