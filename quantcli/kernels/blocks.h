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

#include "block_weights.h"

namespace {

constexpr int MOST_RATIOS = LIMITS.ends;
constexpr int MOST_FACTORS = 9, MOST_CHOICES = 28;  // the latter of d and dm, 25 or 9, filled up to whole CHAINS
constexpr double TINY = 5.9604644775390625e-8;  // 2^-24, the smallest float16

// A scale as it is stored: not 0 unless it is.
inline double stored(double value) {
  const double half = double(half_to_float(to_half(float(value))));
  return half != 0 || value == 0 ? half : value < 0 ? -TINY : TINY;
}

template <int FORM, int N, bool WEIGHTED>
struct Blocks {
  using Weights = BlockWeights<FORM, N, WEIGHTED>;
  using Lanes = typename Weights::Lanes;
  using Steps = typename Weights::Steps;
  using Sums64 = typename Weights::Sums64;
  static constexpr int V = Weights::V, J = Weights::J;
  static constexpr int NEIGHBOURS = FORM == AFFINE ? 2 : 1;  // of a scale that are tried where d is chosen

  const BlockType& type;
  Weights weights;
  Lanes scale, offset, codes, squares;  // found for every sub-block; sums over its codes, from 0 on
  Lanes mean;                           // of the codes
  Steps both_signs[FORM == AFFINE ? 1 : MOST_RATIOS][2];  // candidates, the same for all sub-blocks

  explicit Blocks(const BlockType& t) : type(t), weights(t) {
    const double reach = FORM == TABLE ? 127.0 : double(-weights.low), half = double(weights.range) * 0.5;
    Lanes step, none = {};
    for (int k = 0; FORM != AFFINE && k < type.ratio_count; ++k)
      for (int sign = 0; sign < 2; ++sign) {
        const double size = half * type.ratios[k] / reach;
        for (int v = 0; v < V; ++v) step.v[v] = Doubles{} + (sign ? size : -size);
        both_signs[k][sign].set(step, none);
      }
  }

  // The best codes of every sub-block so far: their sums, and the refit to them: slope cross / square.
  struct Best {
    Lanes gain, cross, square, code, own;
  };

  // Sums of COUNT candidates; the best so far.
  template <int COUNT>
  void attempt(const Steps* steps, Best& best) const {
    Sums64 found[COUNT];
    weights.template sums<COUNT>(steps, found);
    for (const Sums64& own : found) judge(own, best);
  }

  void judge(const Sums64& found, Best& best) const {
    for (int v = 0; v < V; ++v) {
      Doubles cross = found.cross.v[v], square = found.square.v[v];
      if (FORM == AFFINE) {
        cross = weights.count.v[v] * cross - weights.sum.v[v] * found.code.v[v];
        square = weights.count.v[v] * square - found.code.v[v] * found.code.v[v];
      }
      const Doubles gain = cross * cross, none = {};
      DoubleBits better = (square > none) & (gain * best.square.v[v] > best.gain.v[v] * square);
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
    Lanes begin[MOST_RATIOS], end[MOST_RATIOS], step, place;
    for (int v = 0; v < V; ++v) {
      const Doubles mean = weights.sum.v[v] / weights.count.v[v];
      for (int k = 0; k < type.ratio_count; ++k) {
        begin[k].v[v] = mean + (-half - mean) * type.ratios[k];
        end[k].v[v] = mean + (half - mean) * type.ratios[k];
      }
    }
    Steps steps[PAIRED];
    const int count = type.ratio_count * type.ratio_count;
    for (int k = 0; k < count; ++k) {
      const Lanes &first = begin[k / type.ratio_count], &last = end[k % type.ratio_count];
      for (int v = 0; v < V; ++v) {
        step.v[v] = (last.v[v] - first.v[v]) * each;
        place.v[v] = first.v[v] - weights.low * step.v[v];
      }
      steps[k % PAIRED].set(step, place);
      if (k % PAIRED == PAIRED - 1)
        attempt<PAIRED>(steps, best);
      else if (k == count - 1)
        attempt<1>(steps, best);
    }
    for (int r = 0; r < type.refits; ++r) {
      for (int v = 0; v < V; ++v) {
        const Doubles slope = best.cross.v[v] / best.square.v[v];
        step.v[v] = of(best.gain.v[v] > 0.0, slope, Doubles{} + half);
        place.v[v] = within((weights.sum.v[v] - step.v[v] * best.code.v[v]) / weights.count.v[v]);
      }
      steps[0].set(step, place);
      attempt<1>(steps, best);
    }
  }

  static Doubles within(Doubles place) { return bounded(place, -30000.0, 30000.0); }

  void signed_candidates(Best& best) const {
    for (int k = 0; k < type.ratio_count; ++k) attempt<2>(both_signs[k], best);
  }

  // Scale and offset of every sub-block by itself.
  void alone() {
    Best best = {};
    for (int v = 0; v < V; ++v) best.square.v[v] = Doubles{} + 1.0;
    FORM == AFFINE ? affine_candidates(best) : signed_candidates(best);
    for (int v = 0; v < V; ++v) {
      const Doubles slope = best.cross.v[v] / best.square.v[v] * weights.per.v[v];
      scale.v[v] = slope;
      squares.v[v] = best.own.v[v];
      if (FORM == AFFINE) {
        const Doubles n = weights.count.v[v], code = best.code.v[v];
        const double low = weights.low;
        const Doubles place = (weights.sum.v[v] * weights.per.v[v] - slope * code) / n;
        offset.v[v] = weights.middle.v[v] + place + low * slope;
        codes.v[v] = code - low * n;
        squares.v[v] = best.own.v[v] - 2.0 * low * code + low * low * n;
        mean.v[v] = codes.v[v] / n;
      }
    }
  }

  // The wanted minimum under a scale that differs from the best by `moved`, times -dm.
  Doubles wanted(int v, Doubles moved) const { return mean.v[v] * moved - offset.v[v]; }

  static double inverse_of(double value) { return value != 0 ? 1 / value : 0; }

  // The neighbours of the wanted scales among multiples of some d: their error without the part of the minimum, and
  // what that depends on.
  struct Moved {
    Doubles lost, wanted, twice;
  };

  void move(double d, Moved (*moved)[V]) const {
    const double inverse = inverse_of(d);
    for (int v = 0; v < V; ++v) {
      const Doubles first = FORM == AFFINE ? below(scale.v[v] * inverse) : nearest(scale.v[v] * inverse);
      for (int k = 0; k < NEIGHBOURS; ++k) {
        const Doubles by = d * bounded(first + double(k), type.low, type.high) - scale.v[v];
        moved[k][v].lost = squares.v[v] * by * by;
        if (FORM != AFFINE) continue;
        moved[k][v].wanted = wanted(v, by);
        moved[k][v].twice = 2.0 * codes.v[v] * by;
      }
    }
  }

  // How much more error the codes have with such scales, and minima of dm.
  void loss(const Moved (*moved)[V], double dm, Lanes& found) const {
    const double inverse = inverse_of(dm);
    for (int v = 0; v < V; ++v) {
      Doubles least = {};
      for (int k = 0; k < NEIGHBOURS; ++k) {
        Doubles lost = moved[k][v].lost;
        if (FORM == AFFINE) {
          const Doubles minimum = bounded(nearest(moved[k][v].wanted * inverse), 0, type.deepest);
          const Doubles shifted = -dm * minimum - offset.v[v];
          lost += moved[k][v].twice * shifted + weights.count.v[v] * shifted * shifted;
        }
        least = k ? lesser(lost, least) : lost;
      }
      found.v[v] = least * weights.factor.v[v];
    }
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
    const int depths = FORM == AFFINE ? type.factor_count : 1;
    double minima[MOST_FACTORS], sizes[MOST_FACTORS], losses[MOST_CHOICES];
    for (int b = 0; b < depths; ++b) minima[b] = stored(depth * type.factors[b]);
    Lanes found[MOST_CHOICES];
    Moved moved[NEIGHBOURS][V];
    for (int a = 0; a < type.factor_count; ++a) {
      sizes[a] = stored(base * type.factors[a]);
      move(sizes[a], moved);
      for (int b = 0; b < depths; ++b) loss(moved, minima[b], found[a * depths + b]);
    }
    const int count = type.factor_count * depths;
    for (int k = count; k % CHAINS; ++k) found[k] = found[0];
    totals(found, count, losses);
    int best = -1;
    double least = INFINITY;
    for (int k = 0; k < count; ++k)
      if (losses[k] < least) least = losses[k], best = k;
    return best < 0 ? Choice{} : Choice{sizes[best / depths], minima[best % depths]};
  }

  struct Parts {
    Lanes scale = {}, minimum = {}, error = {};
    Sums64 sums = {};
  };

  // Stored parts that are tried, and what they are in units of the weights.
  struct Offer {
    Lanes scale, minimum, size, place;
  };

  void set(Offer& offer, const Choice& choice, Steps& steps) const {
    Lanes step;
    for (int v = 0; v < V; ++v) {
      const Doubles unit = weights.unit.v[v], size = choice.d * offer.scale.v[v] * unit;
      offer.size.v[v] = size;
      step.v[v] = of(size != 0.0, size, Doubles{} + double(weights.range));
      if (FORM != AFFINE) continue;
      const Doubles begin = (-choice.dm * offer.minimum.v[v] - weights.middle.v[v]) * unit;
      offer.place.v[v] = within(begin - double(weights.low) * size);
    }
    steps.set(step, offer.place);
  }

  // Keeps, of every sub-block, parts with a smaller error.
  void keep(const Offer& offer, const Sums64& found, Parts& best) const {
    for (int v = 0; v < V; ++v) {
      const Doubles s = offer.size.v[v], p = offer.place.v[v];
      Doubles error = weights.power.v[v] - 2.0 * s * found.cross.v[v] + s * s * found.square.v[v];
      if (FORM == AFFINE)
        error += 2.0 * p * (s * found.code.v[v] - weights.sum.v[v]) + weights.count.v[v] * p * p;
      error = error * weights.per.v[v] * weights.per.v[v] * weights.factor.v[v];
      const DoubleBits better = error < best.error.v[v];
      best.error.v[v] = of(better, error, best.error.v[v]);
      best.scale.v[v] = of(better, offer.scale.v[v], best.scale.v[v]);
      best.sums.square.v[v] = of(better, found.square.v[v], best.sums.square.v[v]);
      best.sums.cross.v[v] = of(better, found.cross.v[v], best.sums.cross.v[v]);
      if (FORM != AFFINE) continue;
      best.minimum.v[v] = of(better, offer.minimum.v[v], best.minimum.v[v]);
      best.sums.code.v[v] = of(better, found.code.v[v], best.sums.code.v[v]);
    }
  }

  Parts parts(const Choice& choice) const {
    constexpr int NEAR[2][2] = {{0, 1}, {-1, 2}};
    Parts best;
    const double inverse = inverse_of(choice.d), other = inverse_of(choice.dm);
    for (int v = 0; v < V; ++v) best.error.v[v] = Doubles{} + INFINITY;
    Offer offers[2] = {};
    Steps steps[2];
    Sums64 found[2];
    for (int k = 0; k < 2; ++k) {
      for (int h = 0; h < 2; ++h) {
        for (int v = 0; v < V; ++v) {
          const Doubles wished = below(scale.v[v] * inverse) + double(FORM == AFFINE ? k : NEAR[k][h]);
          const Doubles own = bounded(wished, type.low, type.high);
          offers[h].scale.v[v] = own;
          if (FORM != AFFINE) continue;
          const Doubles first = below(wanted(v, choice.d * own - scale.v[v]) * other);
          offers[h].minimum.v[v] = bounded(first + double(h), 0, type.deepest);
        }
        set(offers[h], choice, steps[h]);
      }
      weights.template sums<2>(steps, found);
      for (int h = 0; h < 2; ++h) keep(offers[h], found[h], best);
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
        if (!(other.error.total() < best.error.total())) break;
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
