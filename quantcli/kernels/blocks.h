// Scales of super-blocks of 256 weights: whole numbers of few bits for each of 8 or 16 sub-blocks, under float16 scales
// that all of them share. A weight is d s_j e - m t_j (AFFINE), d s_j e (SIGNED) or d s_j level[e] (TABLE).
//
// First every sub-block by itself: candidates give codes, whose least-squares refit is scored as in search.h. Then d
// (and m): those near the largest scale, scored by what rounding s_j and t_j to them costs the codes found. Then s_j and
// t_j: neighbours of the wanted scale, scored by the error of the codes they give. d and m are refit to these codes, and
// s_j and t_j chosen again, as long as the error falls.
//
// Sums over codes are the exact ones of block_weights.h; all else is float64, in the order written here.

#pragma once

#include <initializer_list>

#include "block_weights.h"

namespace {

constexpr int MOST_RATIOS = LIMITS.ends;
constexpr double TINY = 5.9604644775390625e-8;  // 2^-24, the smallest float16

// A scale as it is stored: not 0 unless it is.
inline double stored(double value) {
  const double half = double(half_to_float(to_half(float(value))));
  return half != 0 || value == 0 ? half : value < 0 ? -TINY : TINY;
}

template <int FORM, int N, bool WEIGHTED>
struct Blocks {
  using Weights = BlockWeights<FORM, N, WEIGHTED>;
  using Lanes64 = typename Weights::Lanes64;
  using Sums64 = typename Weights::Sums64;
  static constexpr int J = Weights::J, V = Weights::V;

  const BlockType& type;
  Weights weights;
  Lanes64 scale, offset, codes, squares;  // found for every sub-block; sums over its codes, from 0 on

  explicit Blocks(const BlockType& t) : type(t), weights(t) {}

  // The best codes of every sub-block so far: their sums, and the refit to them: slope cross / square.
  struct Best {
    Lanes64 gain, cross, square, code, own;
  };

  void judge(const Sums64& found, Best& best) const {
    for (int v = 0; v < V; ++v) {
      Four64 cross = found.cross.v[v], square = found.square.v[v];
      if (FORM == AFFINE) {
        cross = weights.count.v[v] * cross - weights.sum.v[v] * found.code.v[v];
        square = weights.count.v[v] * square - found.code.v[v] * found.code.v[v];
      }
      const Four64 gain = cross * cross, none = {};
      Four64Bits better = (square > none) & (gain * best.square.v[v] > best.gain.v[v] * square);
      if (FORM == AFFINE) better &= cross > none;
      best.gain.v[v] = of(better, gain, best.gain.v[v]);
      best.cross.v[v] = of(better, cross, best.cross.v[v]);
      best.square.v[v] = of(better, square, best.square.v[v]);
      best.own.v[v] = of(better, found.square.v[v], best.own.v[v]);
      if (FORM == AFFINE) best.code.v[v] = of(better, found.code.v[v], best.code.v[v]);
    }
  }

  void affine_candidates(Best& best) const {
    const double half = double(weights.range) * 0.5, each = 1.0 / weights.top;
    Lanes64 begin[MOST_RATIOS], end[MOST_RATIOS], step, place;
    for (int v = 0; v < V; ++v) {
      const Four64 mean = weights.sum.v[v] / weights.count.v[v];
      for (int k = 0; k < type.ratio_count; ++k) {
        begin[k].v[v] = mean + (-half - mean) * type.ratios[k];
        end[k].v[v] = mean + (half - mean) * type.ratios[k];
      }
    }
    Sums64 found;
    for (int a = 0; a < type.ratio_count; ++a)
      for (int b = 0; b < type.ratio_count; ++b) {
        for (int v = 0; v < V; ++v) {
          step.v[v] = (end[b].v[v] - begin[a].v[v]) * each;
          place.v[v] = begin[a].v[v] - weights.low * step.v[v];
        }
        weights.sums(step, place, found);
        judge(found, best);
      }
    for (int r = 0; r < type.refits; ++r) {
      for (int v = 0; v < V; ++v) {
        const Four64 slope = best.cross.v[v] / best.square.v[v];
        step.v[v] = of(best.gain.v[v] > 0.0, slope, Four64{} + half);
        place.v[v] = within((weights.sum.v[v] - step.v[v] * best.code.v[v]) / weights.count.v[v]);
      }
      weights.sums(step, place, found);
      judge(found, best);
    }
  }

  static Four64 within(Four64 place) { return larger(lesser(place, Four64{} + 30000.0), Four64{} - 30000.0); }

  void signed_candidates(Best& best) const {
    const double reach = FORM == TABLE ? 127.0 : double(-weights.low), half = double(weights.range) * 0.5;
    Lanes64 step, place = {};
    Sums64 found;
    for (int k = 0; k < type.ratio_count; ++k)
      for (int sign = 0; sign < 2; ++sign) {
        const double size = half * type.ratios[k] / reach;
        for (int v = 0; v < V; ++v) step.v[v] = Four64{} + (sign ? size : -size);
        weights.sums(step, place, found);
        judge(found, best);
      }
  }

  // Scale and offset of every sub-block by itself.
  void alone() {
    Best best = {};
    for (int v = 0; v < V; ++v) best.square.v[v] = Four64{} + 1.0;
    FORM == AFFINE ? affine_candidates(best) : signed_candidates(best);
    for (int v = 0; v < V; ++v) {
      const Four64 slope = best.cross.v[v] / best.square.v[v] * weights.per.v[v];
      scale.v[v] = slope;
      squares.v[v] = best.own.v[v];
      if (FORM == AFFINE) {
        const Four64 n = weights.count.v[v], code = best.code.v[v];
        const double low = weights.low;
        const Four64 place = (weights.sum.v[v] * weights.per.v[v] - slope * code) / n;
        offset.v[v] = weights.middle.v[v] + place + low * slope;
        codes.v[v] = code - low * n;
        squares.v[v] = best.own.v[v] - 2.0 * low * code + low * low * n;
      }
    }
  }

  static double total(const Lanes64& lanes) {
    double all = 0;
    for (int j = 0; j < J; ++j) all += lanes[j];
    return all;
  }

  // The wanted minimum under a scale that differs from the best by `moved`, in units of -dm.
  Four64 wanted(int v, Four64 moved, double inverse) const {
    return (codes.v[v] / weights.count.v[v] * moved - offset.v[v]) * inverse;
  }

  Four64 bounded(Four64 value, double least, double most) const {
    return larger(lesser(value, Four64{} + most), Four64{} + least);
  }

  // How much more error the codes have with scales that are multiples of d, and minima of dm.
  double loss(double d, double dm) const {
    const double inverse = d != 0 ? 1 / d : 0, other = dm != 0 ? 1 / dm : 0;
    Lanes64 found;
    for (int v = 0; v < V; ++v) {
      const Four64 first = FORM == AFFINE ? below(scale.v[v] * inverse) : nearest(scale.v[v] * inverse);
      Four64 least = {};
      for (int k = 0; k < (FORM == AFFINE ? 2 : 1); ++k) {
        const Four64 moved = d * bounded(first + double(k), type.low, type.high) - scale.v[v];
        Four64 lost = squares.v[v] * moved * moved;
        if (FORM == AFFINE) {
          const Four64 minimum = bounded(nearest(wanted(v, moved, other)), 0, type.deepest);
          const Four64 shifted = -dm * minimum - offset.v[v];
          lost += 2.0 * codes.v[v] * moved * shifted + weights.count.v[v] * shifted * shifted;
        }
        least = k ? lesser(lost, least) : lost;
      }
      found.v[v] = least * weights.factor.v[v];
    }
    return total(found);
  }

  struct Choice {
    double d = 0, dm = 0;
  };

  Choice first_choice() const {
    double most = 0, deep = 0, steep = 0;
    for (int j = 0; j < J; ++j) {
      most = std::fabs(scale[j]) > std::fabs(most) ? scale[j] : most;
      if (FORM == AFFINE) deep = -offset[j] > deep ? -offset[j] : deep, steep = offset[j] > steep ? offset[j] : steep;
    }
    const double base = FORM == AFFINE ? most / type.high : most / type.low;
    const double depth = (deep >= steep ? deep : -steep) / (FORM == AFFINE ? type.deepest : 1);
    Choice best;
    double least = INFINITY;
    for (int a = 0; a < type.factor_count; ++a)
      for (int b = 0; b < (FORM == AFFINE ? type.factor_count : 1); ++b) {
        const double d = stored(base * type.factors[a]), dm = stored(depth * type.factors[b]);
        const double lost = loss(d, dm);
        if (lost < least) least = lost, best = {d, dm};
      }
    return best;
  }

  struct Parts {
    Lanes64 scale = {}, minimum = {}, error = {};
    Sums64 sums = {};
  };

  // Keeps, of every sub-block, stored parts with a smaller error.
  void offer(const Choice& choice, const Lanes64& own, const Lanes64& minimum, Parts& best) const {
    Lanes64 step, place = {}, size;
    for (int v = 0; v < V; ++v) {
      const Four64 unit = weights.unit.v[v];
      size.v[v] = choice.d * own.v[v] * unit;
      step.v[v] = of(size.v[v] != 0.0, size.v[v], Four64{} + double(weights.range));
      if (FORM != AFFINE) continue;
      const Four64 begin = (-choice.dm * minimum.v[v] - weights.middle.v[v]) * unit;
      place.v[v] = within(begin - double(weights.low) * size.v[v]);
    }
    Sums64 found;
    weights.sums(step, place, found);
    for (int v = 0; v < V; ++v) {
      const Four64 s = size.v[v], p = place.v[v];
      Four64 error = weights.power.v[v] - 2.0 * s * found.cross.v[v] + s * s * found.square.v[v];
      if (FORM == AFFINE)
        error += 2.0 * p * (s * found.code.v[v] - weights.sum.v[v]) + weights.count.v[v] * p * p;
      error = error * weights.per.v[v] * weights.per.v[v] * weights.factor.v[v];
      const Four64Bits better = error < best.error.v[v];
      best.error.v[v] = of(better, error, best.error.v[v]);
      best.scale.v[v] = of(better, own.v[v], best.scale.v[v]);
      best.sums.square.v[v] = of(better, found.square.v[v], best.sums.square.v[v]);
      best.sums.cross.v[v] = of(better, found.cross.v[v], best.sums.cross.v[v]);
      if (FORM != AFFINE) continue;
      best.minimum.v[v] = of(better, minimum.v[v], best.minimum.v[v]);
      best.sums.code.v[v] = of(better, found.code.v[v], best.sums.code.v[v]);
    }
  }

  Parts parts(const Choice& choice) const {
    Parts best;
    const double inverse = choice.d != 0 ? 1 / choice.d : 0, other = choice.dm != 0 ? 1 / choice.dm : 0;
    for (int v = 0; v < V; ++v) best.error.v[v] = Four64{} + INFINITY;
    Lanes64 own, minimum = {};
    for (const int k : {0, 1, -1, 2}) {
      if (FORM == AFFINE && (k < 0 || k > 1)) continue;
      for (int h = 0; h < (FORM == AFFINE ? 2 : 1); ++h) {
        for (int v = 0; v < V; ++v) {
          own.v[v] = bounded(below(scale.v[v] * inverse) + double(k), type.low, type.high);
          if (FORM != AFFINE) continue;
          const Four64 first = below(wanted(v, choice.d * own.v[v] - scale.v[v], other));
          minimum.v[v] = bounded(first + double(h), 0, type.deepest);
        }
        offer(choice, own, minimum, best);
      }
    }
    return best;
  }

  // d and dm with the least error for the codes of some parts; 0 where there is none.
  Choice refit(const Parts& found) const {
    double square = 0, mixed = 0, deep = 0, cross = 0, fall = 0;
    for (int j = 0; j < J; ++j) {
      const double s = found.scale[j], f = weights.factor[j];
      if (FORM != AFFINE) {
        square += f * s * s * found.sums.square[j];
        cross += f * s * found.sums.cross[j] * weights.per[j];
        continue;
      }
      const double m = found.minimum[j], n = weights.count[j], l = weights.low;
      const double code = found.sums.code[j] - l * n;
      const double own = found.sums.square[j] - 2 * l * found.sums.code[j] + l * l * n;
      const double all = weights.sum[j] * weights.per[j] + n * weights.middle[j];
      const double product = (found.sums.cross[j] - l * weights.sum[j]) * weights.per[j] + weights.middle[j] * code;
      square += f * s * s * own;
      mixed -= f * s * m * code;
      deep += f * m * m * n;
      cross += f * s * product;
      fall -= f * m * all;
    }
    if (FORM != AFFINE) return {square > 0 ? stored(cross / square) : 0, 0};
    const double det = square * deep - mixed * mixed;
    if (!(det > 0)) return {};
    return {stored((cross * deep - fall * mixed) / det), stored((square * fall - mixed * cross) / det)};
  }

  void run(const Tile& tile, const int16_t* importance, const double* much, uint16_t* d, uint16_t* dm, int8_t* scales,
           uint8_t* minima) {
    const int64_t across = tile.cols / SUPER;
    float x[SUPER];
    for (int64_t k = 0; k < tile.rows * across; ++k) {
      load(tile.weights, tile.kind, k * SUPER, SUPER, x);
      const int64_t column = k % across * SUPER;
      weights.read(x, WEIGHTED ? importance + column : nullptr, WEIGHTED ? much + column / N : nullptr);
      alone();
      Choice choice = first_choice();
      Parts best = parts(choice);
      for (int r = 1; r < type.rounds; ++r) {
        const Choice next = refit(best);
        if (next.d == 0 || (next.d == choice.d && next.dm == choice.dm)) break;
        const Parts other = parts(next);
        if (!(total(other.error) < total(best.error))) break;
        choice = next;
        best = other;
      }
      d[k] = to_half(float(choice.d + 0.0));  // no negative zeros
      dm[k] = to_half(float(choice.dm + 0.0));
      for (int j = 0; j < J; ++j) {
        scales[k * J + j] = int8_t(best.scale[j]);
        if (FORM == AFFINE) minima[k * J + j] = uint8_t(best.minimum[j]);
      }
    }
  }
};

template <int FORM, int N>
void search_blocks(const Tile& tile, const BlockType& type, const int16_t* importance, const double* much, uint16_t* d,
                   uint16_t* dm, int8_t* scales, uint8_t* minima) {
  if (importance)
    Blocks<FORM, N, true>(type).run(tile, importance, much, d, dm, scales, minima);
  else
    Blocks<FORM, N, false>(type).run(tile, importance, much, d, dm, scales, minima);
}

}  // namespace
