// Trial scales of groups for the levels of a codebook, and the sums for learning levels.

#pragma once

#include "levels.h"

namespace {

constexpr int MOST_TRIALS = LIMITS.trials;

// Sums of each trial, over blocks of weights: of x l and l l for the levels l nearest to x * reciprocal.
struct Fits {
  float cross[MOST_TRIALS], square[MOST_TRIALS];
};

// One trial of a block of vectors.
inline void fit_one(const float* x, int vectors, float reciprocal, const Table& table, int k, Fits& found) {
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
  found.cross[k] = sums.first, found.square[k] = sums.second;
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

  // COUNT times two trials from the k-th on.
  template <int COUNT>
  void fit(const float* x, int vectors, const float* reciprocal, int k, Fits& found) const {
    __m512 by[COUNT], cross[COUNT], square[COUNT];
    for (int i = 0; i < COUNT; ++i) {
      const float* own = reciprocal + k + 2 * i;
      by[i] = _mm512_insertf32x8(_mm512_set1_ps(own[0]), _mm256_set1_ps(own[1]), 1);
      cross[i] = square[i] = _mm512_setzero_ps();
    }
    for (int p = 0; p < vectors; ++p) {
      const __m512 v = _mm512_broadcast_f32x8(_mm256_loadu_ps(x + p * W));
      for (int i = 0; i < COUNT; ++i) {
        const __m512 l = nearest(_mm512_mul_ps(v, by[i]));
        cross[i] = _mm512_add_ps(cross[i], _mm512_mul_ps(v, l));
        square[i] = _mm512_add_ps(square[i], _mm512_mul_ps(l, l));
      }
    }
    for (int i = 0; i < COUNT; ++i) {
      put(folded(cross[i]), found.cross + k + 2 * i);
      put(folded(square[i]), found.square + k + 2 * i);
    }
  }

  static void put(__m512 sums, float* two) {
    two[0] = _mm512_cvtss_f32(sums), two[1] = _mm256_cvtss_f32(_mm512_extractf32x8_ps(sums, 1));
  }
};

constexpr int AT_A_TIME = 8;

// All trials, an even number of them.
inline void fit_all(const float* x, int vectors, const float* reciprocal, const Table& table, int trials, Fits& found) {
  int k = 0;
  if (table.is_few()) {
    const FewForTwo few(table);
    for (; k + AT_A_TIME <= trials; k += AT_A_TIME) few.fit<AT_A_TIME / 2>(x, vectors, reciprocal, k, found);
    for (; k < trials; k += 2) few.fit<1>(x, vectors, reciprocal, k, found);
  }
  for (; k < trials; ++k) fit_one(x, vectors, reciprocal[k], table, k, found);
}

#else

inline void fit_all(const float* x, int vectors, const float* reciprocal, const Table& table, int trials, Fits& found) {
  for (int k = 0; k < trials; ++k) fit_one(x, vectors, reciprocal[k], table, k, found);
}

#endif

// The trial scales of a group of a row, and sums for each.
struct LevelTrials {
  const Tile& tile;
  const Table& table;
  int trials, even;
  float x[BLOCK];
  float reciprocal[MOST_TRIALS] = {};
  double crosses[MOST_TRIALS], squares[MOST_TRIALS];

  LevelTrials(const Tile& tile, const Table& table, int trials)
      : tile(tile), table(table), trials(trials), even((trials + 1) & ~1) {}

  // The first trial with the least squared error of the n weights from `at` on.
  int best(int64_t at, int64_t n, const float* own) {
    for (int k = 0; k < trials; ++k) reciprocal[k] = 1.0f / own[k];
    for (int k = 0; k < trials; ++k) crosses[k] = squares[k] = 0;
    for (int64_t first = 0; first < n; first += BLOCK) {
      const int m = int(n - first < BLOCK ? n - first : BLOCK), whole = m / W;
      for (int from = 0; from < m; from += LANES)
        load(tile.weights, tile.kind, at + first + from, m - from < LANES ? m - from : LANES, x + from);
      Fits found;
      fit_all(x, whole, reciprocal, table, even, found);
      for (int k = 0; k < trials; ++k) crosses[k] += double(found.cross[k]), squares[k] += double(found.square[k]);
      for (int i = whole * W; i < m; ++i) add_rest(x[i]);
    }
    double errors[MOST_TRIALS];
    for (int k = 0; k < trials; ++k) {
      const double s = own[k];
      errors[k] = s * (s * squares[k] - 2 * crosses[k]);
    }
    int found = 0;
    double least = INFINITY;
    for (int k = 0; k < trials; ++k) {
      const bool better = errors[k] < least;
      least = better ? errors[k] : least;
      found = better ? k : found;
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

  void places_of(const float* t, int n, int32_t* places) const {
    int done = 0;
    for (; table.is_few() && done + W <= n; done += W) {
      Eight v;
      std::memcpy(&v, t + done, sizeof v);
      const EightInts found = table.few.place(v);
      std::memcpy(places + done, &found, sizeof found);
    }
    place(t + done, n - done, table.thresholds, table.count, places + done);
  }

  // Adds scale * x and scale^2 of n weights to the sums of their levels.
  void add_up(int64_t at, int64_t n, float scale, double* cross, double* square) {
    const float by = 1.0f / scale;
    const double wide = double(scale);
    float t[LANES];
    int32_t places[LANES];
    for (int64_t first = 0; first < n; first += LANES) {
      const int m = int(n - first < LANES ? n - first : LANES);
      load(tile.weights, tile.kind, at + first, m, x);
      for (int i = 0; i < m; ++i) t[i] = x[i] * by;
      places_of(t, m, places);
      for (int i = 0; i < m; ++i) {
        cross[places[i]] += wide * double(x[i]);
        square[places[i]] += wide * wide;
      }
    }
  }
};

}  // namespace
