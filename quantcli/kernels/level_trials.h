// Trial scales of groups for the levels of a codebook, and the sums for learning levels.
//
// More levels than few_trials.h takes: sums of float32, in vectors of 8 by blocks of BLOCK weights.

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
    float q[W];
    int32_t at[W];
    std::memcpy(q, &t, sizeof q);
    place(q, W, table.thresholds, table.count, at);
    for (int j = 0; j < W; ++j) l[j] = table.sorted[at[j]];
    cross += v * l;
    square += l * l;
  }
  const Pair sums = fold(cross, square);
  found.cross[k] = sums.first, found.square[k] = sums.second;
}

// The trial scales of a group of a row, and sums for each.
struct LevelTrials {
  const Tile& tile;
  const Table& table;
  int trials;
  float x[BLOCK];
  float reciprocal[MOST_TRIALS];
  double crosses[MOST_TRIALS], squares[MOST_TRIALS];

  LevelTrials(const Tile& tile, const Table& table, int trials) : tile(tile), table(table), trials(trials) {}

  // The first trial with the least squared error of the n weights from `at` on.
  int best(int64_t at, int64_t n, const float* own) {
    for (int k = 0; k < trials; ++k) reciprocal[k] = 1.0f / own[k];
    for (int k = 0; k < trials; ++k) crosses[k] = squares[k] = 0;
    for (int64_t first = 0; first < n; first += BLOCK) {
      const int m = int(n - first < BLOCK ? n - first : BLOCK), whole = m / W;
      for (int from = 0; from < m; from += LANES)
        load(tile.weights, tile.kind, at + first + from, m - from < LANES ? m - from : LANES, x + from);
      Fits found;
      for (int k = 0; k < trials; ++k) fit_one(x, whole, reciprocal[k], table, k, found);
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
