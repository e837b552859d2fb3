// Scales with the least squared error: candidates around the largest weight, scored after a least-squares refit.
//
// For fixed codes c of weights u the best scale is sum(u c) / sum(c c), and the squared error falls by
// sum(u c)^2 / sum(c c). A candidate scale only serves to find codes; its own value does not count.
//
// Weights and candidates are whole numbers here. Up to 8 bits weights have 10 to 13 bits and a sign: 16 of them fit a
// register, and sums are exact, so that their order is free and scores keep every digit in which candidates differ.
// Rounding a weight moves it by 1/50 of a step at most, and what is stored is encoded from the weights themselves.
// Above 8 bits weights have 24 bits, products 64.
//
// With importances of columns, whole numbers of up to 11 bits by which errors count, their products with codes of up to
// 5 bits fit 16 as well, and so do those with weights, rounded to 15 bits and a sign. For more bits weights have 16,
// and products 64.

#pragma once

#include <vector>

#include "common.h"

namespace {

constexpr int MOST = LIMITS.candidates;
constexpr int AT_ONCE = 16;    // 16-bit weights in a vector of 32 bytes
constexpr int PAIRED = 2;      // candidates that are added up together where there is one grid: weights are read once
constexpr int REACH = 512;     // weights of a block: the sums of that many 16-bit products fit 32 bits
constexpr int BY_COLUMN = 16;  // bits of weights whose columns count differently, where products have 64
constexpr int FEW_BITS = 11;   // of importances
constexpr float FEW_CODES = 15;  // the largest with which an importance still fits 16 bits
constexpr int MOST_GRIDS = FIVE_ZEROS;
constexpr float ROUNDING = 12582912.0f;  // 1.5 * 2^23: adding it leaves the nearest whole number in the low bits

}  // namespace

#include "side_by_side.h"

namespace {

inline void fixed(const float* x, int n, float unit, float factor, int16_t* u) {
  for (int i = 0; i < n; ++i) u[i] = int16_t(to_bits(x[i] * unit * factor + ROUNDING));
}

inline void fixed(const float* x, int n, float unit, float factor, int32_t* u) {
  for (int i = 0; i < n; ++i) u[i] = int32_t(std::nearbyintf(x[i] * unit * factor));
}

// Bits of the weights, for codes of up to `largest`: as many as rounding to 1/50 of a step needs, and sums have room for.
template <class Word, bool WEIGHTED>
inline int fraction(float largest) {
  if (WEIGHTED && sizeof(Word) > 2) return BY_COLUMN;
  return sizeof(Word) > 2 ? 24 : largest <= 32 ? 10 : largest <= 64 ? 11 : largest <= 160 ? 12 : 13;
}

// Weights and candidates are Word; a code is weight * candidate / 2^SHIFT, a Sum holds those of a block.
template <class Word, class Sum, int SHIFT, bool WEIGHTED = false>
struct Search {
  Word candidate[MOST + PAIRED];
  const int32_t* importance;  // of every column of the tile
  float factor;
  int count;
  float drop = 1;  // what products of weights and importances are multiplied by, so that they fit 16 bits

  struct Score {
    int64_t cross, square;
  };

  struct Best {
    double ratio;
    int grid;
  };

  Search(const float* multipliers, int n, const int32_t* columns = nullptr) : importance(columns), count(n) {
    float largest = 0;
    for (int k = 0; k < n; ++k) largest = multipliers[k] > largest ? multipliers[k] : largest;
    const int bits = fraction<Word, WEIGHTED>(largest);
    factor = float(int64_t(1) << bits);
    if (WEIGHTED && sizeof(Word) == 2) drop = 1 / float(1 << (bits + FEW_BITS - 15));
    for (int k = 0; k < n + PAIRED; ++k)
      candidate[k] = Word(std::nearbyintf(multipliers[k < n ? k : n - 1] * float(int64_t(1) << (SHIFT - bits))));
  }

  // A block of weights, padded with zeros; their number with the padding.
  int block(const Tile& tile, int64_t at, int64_t left, float unit, Word* u) const {
    const int n = int(left < REACH ? left : REACH);
    float x[LANES];
    for (int from = 0; from < n; from += LANES) {
      const int m = n - from < LANES ? n - from : LANES;
      load(tile.weights, tile.kind, at + from, m, x);
      fixed(x, m, unit, factor, u + from);
    }
    int filled = n;
    for (; filled % AT_ONCE; ++filled) u[filled] = 0;
    return filled;
  }

  // How much a weight counts for a candidate's code.
  Sum counting(Word u, Word w) const {
    return sizeof(Word) > 2 ? Sum(u) * w : Sum(std::nearbyintf(float(u) * float(w) * drop));
  }

  // Adds up COUNT candidates from the k-th on; much: how much each weight counts, where columns count differently.
  // Compilers make pmulhrsw and pmaddwd of the 16-bit one.
  template <int GRIDS, int COUNT>
  void add(const Word* __restrict u, const Sum* __restrict much, const Word* __restrict w, int n, int k,
           const Word* low, const Word* high, Score (*scores)[GRIDS]) const {
    Sum cross[COUNT][GRIDS] = {}, square[COUNT][GRIDS] = {};
    n &= -AT_ONCE;
    for (int i = 0; i < n; ++i)
      for (int j = 0; j < COUNT; ++j) {
        const Word q = Word(((Sum(u[i]) * candidate[k + j] >> (SHIFT - 1)) + 1) >> 1);
        for (int g = 0; g < GRIDS; ++g) {
          Word c = q < low[g] ? low[g] : q;
          c = c > high[g] ? high[g] : c;
          if constexpr (WEIGHTED) {
            cross[j][g] += much[i] * c;
            square[j][g] += Sum(c) * c * w[i];
          } else {
            cross[j][g] += Sum(u[i]) * c;
            square[j][g] += Sum(c) * c;
          }
        }
      }
    for (int j = 0; j < COUNT; ++j)
      for (int g = 0; g < GRIDS; ++g) {
        scores[k + j][g].cross += cross[j][g];
        scores[k + j][g].square += square[j][g];
      }
  }

  template <int GRIDS>
  Best best(const Tile& tile, int64_t at, int64_t begin, int64_t n, float unit, const Word* low,
            const Word* high) const {
    constexpr int COUNT = GRIDS == 1 ? PAIRED : 1;
    Score scores[MOST + PAIRED][GRIDS];
    for (int k = 0; k < count + PAIRED; ++k)
      for (int g = 0; g < GRIDS; ++g) scores[k][g] = {0, 0};
    Word u[REACH], w[REACH];
    Sum counts[REACH];
    for (int64_t first = 0; first < n; first += REACH) {
      const int filled = block(tile, at + begin + first, n - first, unit, u);
      if constexpr (WEIGHTED) {
        const int own = int(n - first < REACH ? n - first : REACH);
        for (int i = 0; i < filled; ++i) {
          w[i] = i < own ? Word(importance[begin + first + i]) : Word(0);
          counts[i] = counting(u[i], w[i]);
        }
      }
      for (int k = 0; k < count; k += COUNT) add<GRIDS, COUNT>(u, counts, w, filled, k, low, high, scores);
    }
    // gain / square against most / per, without dividing.
    double most = -1, per = 1, cross = 0;
    int grid = 0;
    for (int k = 0; k < count; ++k)
      for (int g = 0; g < GRIDS; ++g) {
        const double c = double(scores[k][g].cross), square = double(scores[k][g].square), gain = c * c;
        if (low[g] <= 0 && high[g] >= 0 && gain * per > most * square) {
          most = gain;
          per = square;
          cross = c;
          grid = g;
        }
      }
    return {cross / per / double(factor) / double(drop), grid};
  }

  void run(const Tile& tile, const float* reciprocal, const float* centre, Word top, Grids grids, double* scale,
           int32_t* grid) const {
    const int64_t groups = tile.groups();
    for (int64_t i = 0; i < tile.rows * groups; ++i) {
      const int64_t begin = i % groups * tile.group, at = i / groups * tile.cols;
      const int64_t n = tile.length(begin);
      Word low[MOST_GRIDS] = {Word(-top), Word(-top)}, high[MOST_GRIDS] = {top, Word(top + 1)};
      if (centre)
        for (int g = 0; g < grids; ++g) {
          low[g] = Word(grids / 2 - g - Word(centre[i]));
          high[g] = Word(top + low[g]);
        }
      else if (grids == BOTH_SIGNS)
        low[0] = Word(-top - 1);
      else if (grids == TURNED)
        high[0] = Word(top + 1);
      const float unit = reciprocal[i];
      const Best found = unit == 0              ? Best{0, 0}
                         : grids == FIVE_ZEROS  ? best<5>(tile, at, begin, n, unit, low, high)
                         : grids == THREE_ZEROS ? best<3>(tile, at, begin, n, unit, low, high)
                         : grids == BOTH_SIGNS  ? best<2>(tile, at, begin, n, unit, low, high)
                                                : best<1>(tile, at, begin, n, unit, low, high);
      scale[i] = found.ratio;
      grid[i] = found.grid;
    }
  }
};

// The search in 16 bits, many groups at a time where there are instructions for it.
template <bool WEIGHTED>
inline void search_narrow(const Tile& tile, const Search<int16_t, int32_t, 15, WEIGHTED>& search,
                          const float* reciprocal, const float* centre, int16_t top, Grids grids, double* scale,
                          int32_t* grid) {
#if defined(__AVX2__)
  static thread_local std::vector<double> sums;
  static thread_local std::vector<float> importance;
  if (WEIGHTED) {
    importance.assign(search.importance, search.importance + tile.cols);
    importance.resize(size_t(tile.cols) + size_t(tile.group) + STRIDE, 0);
  }
  SideBySide<WEIGHTED>(tile, search.candidate, search.count, search.factor, importance, search.drop, sums)
      .run(reciprocal, centre, top, grids, scale, grid);
#else
  search.run(tile, reciprocal, centre, top, grids, scale, grid);
#endif
}

inline void search_tile(const Tile& tile, const float* reciprocal, const float* centre, const float* multipliers,
                        int count, float top, Grids grids, const int32_t* importance, double* scale, int32_t* grid) {
  float largest = 0;
  for (int k = 0; k < count; ++k) largest = multipliers[k] > largest ? multipliers[k] : largest;
  const bool narrow = largest <= 512 && top <= (importance ? FEW_CODES : 255);
  if (importance && narrow)
    search_narrow(tile, Search<int16_t, int32_t, 15, true>(multipliers, count, importance), reciprocal, centre,
                  int16_t(top), grids, scale, grid);
  else if (importance)
    Search<int32_t, int64_t, 28, true>(multipliers, count, importance)
        .run(tile, reciprocal, centre, int32_t(top), grids, scale, grid);
  else if (narrow)
    search_narrow(tile, Search<int16_t, int32_t, 15>(multipliers, count), reciprocal, centre, int16_t(top), grids, scale,
                  grid);
  else
    Search<int32_t, int64_t, 32>(multipliers, count).run(tile, reciprocal, centre, int32_t(top), grids, scale, grid);
}

}  // namespace
