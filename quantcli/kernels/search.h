// Scales with the least squared error: candidates around the largest weight, scored after a least-squares refit.
//
// For fixed codes c of weights u the best scale is sum(u c) / sum(c c), and the squared error falls by
// sum(u c)^2 / sum(c c). A candidate scale only serves to find codes; its own value does not count. Up to 6 bits that
// projection is the score. Above, the score of good candidates differs in digits that float32 sums do not have, so
// there the residual u - c is summed instead.
//
// Sums: 8 float32 lanes (weight i of a block of 1024 goes to lane i % 8), folded by halves, blocks added in float64.
// numpy_search.py makes the same sums in the same order.

#pragma once

#include "common.h"

namespace {

constexpr int MOST = 64;

// The nearest whole number, ties to even, up to 2^22: what adding and taking away 1.5 * 2^23 gives.
inline Eight whole(Eight t) {
#ifdef __AVX__
  return Eight(_mm256_round_ps(__m256(t), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
#else
  return (t + 12582912.0f) - 12582912.0f;
#endif
}

struct Score {
  double cross, square, rest;  // sum(u c) or sum(e c); sum(c c); sum(e e)
};

// Sums over a block for codes clipped to [low, high]; `blocks` vectors of weights times `multiplier`.
template <int GRIDS, bool RESIDUAL>
inline void score(const float* u, int vectors, float multiplier, const float* low, const float* high, Score* scores) {
  Eight cross[GRIDS] = {}, square[GRIDS] = {}, rest[GRIDS] = {};
  for (int i = 0; i < vectors; ++i) {
    Eight v;
    std::memcpy(&v, u + i * W, sizeof v);
    const Eight t = v * multiplier, q = whole(t);
    for (int g = 0; g < GRIDS; ++g) {
      const Eight c = least(most(q, Eight{} + low[g]), Eight{} + high[g]);
      if (RESIDUAL) {
        const Eight e = t - c;
        rest[g] += e * e;
        cross[g] += e * c;
      } else {
        cross[g] += v * c;
      }
      square[g] += c * c;
    }
  }
  for (int g = 0; g < GRIDS; ++g) {
    const Pair sums = fold(cross[g], square[g]);
    scores[g].cross += double(sums.first);
    scores[g].square += double(sums.second);
    if (RESIDUAL) scores[g].rest += double(fold(rest[g]));
  }
}

// How much a candidate takes off the squared error of the normalised weights, and the refit scale it leads to.
struct Gain {
  double gain, scale;
};

template <bool RESIDUAL>
inline Gain judge(const Score& s, double multiplier) {
  if (!(s.square > 0)) return {-1e300, 0};
  if (RESIDUAL) {
    const double step = 1 / multiplier, ratio = s.cross / s.square;
    return {-(s.rest - s.cross * ratio) * step * step, step * (1 + ratio)};
  }
  const double ratio = s.cross / s.square;
  return {s.cross * ratio, ratio};
}

struct Group {
  const Tile& tile;
  int64_t at;
  int64_t n;
  float reciprocal;
  float u[BLOCK];

  // Normalised weights of a block, filled up with zeros to whole vectors; the number of vectors.
  int block(int64_t first) {
    const int m = int(n - first < BLOCK ? n - first : BLOCK);
    for (int from = 0; from < m; from += LANES)
      load(tile.weights, tile.kind, at + first + from, m - from < LANES ? m - from : LANES, u + from);
    for (int i = 0; i < m; ++i) u[i] *= reciprocal;
    int filled = m;
    for (; filled % W; ++filled) u[filled] = 0;
    return filled / W;
  }
};

struct Best {
  double scale;
  int grid;
};

template <int GRIDS, bool RESIDUAL>
Best best_scale(Group& group, const float* multipliers, int count, const float* low, const float* high) {
  Score scores[MOST][GRIDS] = {};
  for (int64_t first = 0; first < group.n; first += BLOCK) {
    const int vectors = group.block(first);
    for (int k = 0; k < count; ++k) score<GRIDS, RESIDUAL>(group.u, vectors, multipliers[k], low, high, scores[k]);
  }
  double most = -1e308;
  Best best{0, 0};
  for (int k = 0; k < count; ++k)
    for (int g = 0; g < GRIDS; ++g) {
      const Gain found = judge<RESIDUAL>(scores[k][g], multipliers[k]);
      if (low[g] <= 0 && high[g] >= 0 && found.gain > most) {
        most = found.gain;
        best = {found.scale, g};
      }
    }
  return best;
}

template <int GRIDS>
Best best_scale(Group& group, const float* multipliers, int count, bool residual, const float* low,
                const float* high) {
  return residual ? best_scale<GRIDS, true>(group, multipliers, count, low, high)
                  : best_scale<GRIDS, false>(group, multipliers, count, low, high);
}

}  // namespace

// For every group the scale of the best candidate, refit, in units of 1 / reciprocal, and which of its grids it was.
// Grids of signed codes. Symmetric (no centre): -top..top with one, -top-1..top and -top..top+1 with two, and with 0
// only the latter, for weights turned so that the extreme is positive (a signed reciprocal). Affine: for zero
// points z from centre - grids/2 on, -z..top-z; those that leave out 0 are passed over. A reciprocal of 0 gives 0.
QK_EXPORT void QK_NAME(search)(const Tile* tile, const float* reciprocal, const float* centre,
                               const float* multipliers, int32_t count, float top, int32_t grids, int32_t residual,
                               double* scale, int32_t* grid) {
  const int64_t groups = (tile->cols + tile->group - 1) / tile->group;
  for (int64_t row = 0; row < tile->rows; ++row)
    for (int64_t g = 0; g < groups; ++g) {
      const int64_t at = row * groups + g, begin = g * tile->group;
      const int64_t end = begin + tile->group < tile->cols ? begin + tile->group : tile->cols;
      Group group{*tile, row * tile->cols + begin, end - begin, reciprocal[at], {}};
      Best best{0, 0};
      if (reciprocal[at] != 0 && centre) {
        float low[5], high[5];
        for (int z = 0; z < grids; ++z) {
          low[z] = -(centre[at] + float(z - grids / 2));
          high[z] = top + low[z];
        }
        best = grids == 5 ? best_scale<5>(group, multipliers, count, residual, low, high)
                          : best_scale<3>(group, multipliers, count, residual, low, high);
      } else if (reciprocal[at] != 0) {
        const float low[2] = {grids == 2 ? -top - 1 : -top, -top}, high[2] = {grids ? top : top + 1, top + 1};
        best = grids == 2 ? best_scale<2>(group, multipliers, count, residual, low, high)
                          : best_scale<1>(group, multipliers, count, residual, low, high);
      }
      scale[at] = best.scale;
      grid[at] = best.grid;
    }
}
