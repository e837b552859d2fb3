// Scales of super-blocks of 256 weights: whole numbers of few bits for each of 8 or 16 sub-blocks, under float16 scales
// that all of them share. A weight is d s_j e - m t_j (AFFINE), d s_j e (SIGNED) or d s_j level[e] (TABLE).
//
// First every sub-block by itself: candidates give codes, whose least-squares refit is scored as in search.h. Then d
// (and m): those near the largest scale, scored by what rounding s_j and t_j to them costs the codes found. Then s_j and
// t_j: neighbours of the wanted scale, scored by the error of the codes they give. d and m are refit to these codes, and
// s_j and t_j chosen again, as long as the error falls.
//
// Weights, candidates and codes are whole numbers of 16 bits, each sub-block in a lane of its own, so that sums are
// exact and need no folding; all else is float64, in the order written here.

#pragma once

#include <initializer_list>

#include "common.h"
#include "search.h"

namespace {

enum Form : int32_t { AFFINE = 0, SIGNED = 1, TABLE = 2 };

// What a type of super-block stores, and how scales are searched, field by field as native.py declares it; table.py
// says what each is.
struct BlockType {
  int32_t form, bits, sub, low, high, deepest, range_bits, refits, rounds, ratio_count, factor_count;
  const double *ratios, *factors;
};

constexpr int SUPER = 256, LANE = 8, QUAD = 4, MOST_RATIOS = LIMITS.ends;
constexpr int FULL = 256;       // the importance of the column of a sub-block that counts most
constexpr double TINY = 5.9604644775390625e-8;  // 2^-24, the smallest float16
constexpr int8_t TABLE_LEVELS[16] = {-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113};

// The level nearest to a whole number of 8 bits, the lower one of two.
constexpr int8_t level_of(int quotient) {
  int k = 0;
  while (k < 15 && 2 * quotient > TABLE_LEVELS[k] + TABLE_LEVELS[k + 1]) ++k;
  return TABLE_LEVELS[k];
}

// For runs of 8 such numbers the first one's level, how much more the last one's is, and the last of the first level:
// levels lie 11 apart or more. In the order of their bits: those of 0 and above first.
struct Runs {
  int8_t first[32] = {}, more[32] = {}, until[32] = {};
  constexpr Runs() {
    for (int k = 0; k < 32; ++k) {
      const int begin = k < 16 ? 8 * k : 8 * k - 256;
      first[k] = level_of(begin);
      more[k] = int8_t(level_of(begin + 7) - first[k]);
      int last = begin;
      while (last < begin + 7 && level_of(last + 1) == first[k]) ++last;
      until[k] = int8_t(last);
    }
  }
};
constexpr Runs RUNS;

typedef double Four64 __attribute__((vector_size(32)));
typedef int64_t Four64Bits __attribute__((vector_size(32)));

inline Four64 of(Four64Bits which, Four64 yes, Four64 no) { return which ? yes : no; }
inline Four64 lesser(Four64 a, Four64 b) { return of(a < b, a, b); }
inline Four64 larger(Four64 a, Four64 b) { return of(a > b, a, b); }
inline Four64 nearest(Four64 v) { return (v + 6755399441055744.0) - 6755399441055744.0; }  // 1.5 * 2^52
inline Four64 below(Four64 v) {
  const Four64 r = nearest(v);
  return r - of(r > v, Four64{} + 1.0, Four64{});
}

// A scale as it is stored: not 0 unless it is.
inline double stored(double value) {
  const double half = double(half_to_float(to_half(float(value))));
  return half != 0 || value == 0 ? half : value < 0 ? -TINY : TINY;
}

template <int FORM, int N, bool WEIGHTED>
struct Blocks {
  static constexpr int J = SUPER / N, PAIRS = N / 2, V = J / QUAD;

  struct Lanes64 {
    Four64 v[V];
    double operator[](int j) const { return v[j / QUAD][j % QUAD]; }
  };

  // Sums over the codes of every sub-block: of codes, of their squares, of their products with the weights.
  struct Sums64 {
    Lanes64 code, square, cross;
  };

  const BlockType& type;
  const int low, top;
  const float range;
  alignas(32) int16_t u[PAIRS][J][2];  // weights in units of their own
  alignas(32) int16_t w[PAIRS][J][2];  // importances, FULL at most
  alignas(32) int16_t uw[PAIRS][J][2];
  Lanes64 count, sum, power;           // of importances, weights, their squares
  Lanes64 middle, unit, per, factor;   // a weight is middle + u * per; factor: how much the sub-block counts
  Lanes64 scale, offset, codes, squares;  // found for every sub-block; sums over its codes, from 0 on

  explicit Blocks(const BlockType& t)
      : type(t), low(-(1 << (t.bits - 1))), top((1 << t.bits) - 1), range(float(1 << t.range_bits)) {}

  static void put(Lanes64& lanes, int j, double value) { lanes.v[j / QUAD][j % QUAD] = value; }

  // Reads a super-block: weights, and of each column its importance and of each sub-block how much it counts.
  void read(const float* x, const int16_t* importance, const double* much) {
    alignas(32) int16_t whole[N];
    for (int j = 0; j < J; ++j) {
      const float* y = x + j * N;
      float lo = y[0], hi = y[0];
      for (int i = 1; i < N; ++i) lo = y[i] < lo ? y[i] : lo, hi = y[i] > hi ? y[i] : hi;
      const float centre = FORM == AFFINE ? lo * 0.5f + hi * 0.5f : 0.0f;
      const float span = FORM == AFFINE ? hi - lo : 2 * (-lo > hi ? -lo : hi);
      const bool varied = span >= 0x1p-100f && span <= 0x1p100f;
      const float times = varied ? range / span : 1.0f;
      for (int i = 0; i < N; ++i) whole[i] = varied ? int16_t(to_bits((y[i] - centre) * times + ROUNDING)) : 0;
      int32_t total = 0, squared = 0, counted = 0;
      for (int p = 0; p < PAIRS; ++p)
        for (int k = 0; k < 2; ++k) {
          const int16_t v = whole[2 * p + k];
          const int32_t much_of = WEIGHTED ? importance[j * N + 2 * p + k] : FULL;
          const int16_t product = WEIGHTED ? int16_t((v * much_of + FULL / 2) >> 8) : v;
          u[p][j][k] = v;
          if (WEIGHTED) w[p][j][k] = int16_t(much_of), uw[p][j][k] = product;
          total += product;
          squared += int32_t(product) * v;
          counted += much_of;
        }
      put(sum, j, double(total));
      put(power, j, double(squared));
      put(count, j, double(counted) * (1.0 / FULL));
      put(middle, j, double(centre));
      put(unit, j, double(times));
      put(per, j, 1.0 / double(times));
      put(factor, j, WEIGHTED ? much[j] : 1.0);
    }
  }

  // Sums for the codes (u - place) / step, place for AFFINE only.
  void sums(const Lanes64& step, const Lanes64& place, Sums64& found) const {
    alignas(32) int32_t times[J], origin[J];
    for (int v = 0; v < V; ++v) {
      const Four64 t = nearest(larger(lesser(32768.0 / step.v[v], Four64{} + 32767.0), Four64{} - 32767.0));
      const Four64 p = nearest(place.v[v]);
      for (int k = 0; k < QUAD; ++k) times[v * QUAD + k] = int32_t(t[k]);
      if (FORM == AFFINE)
        for (int k = 0; k < QUAD; ++k) origin[v * QUAD + k] = int32_t(p[k]);
    }
    for (int g = 0; g < J; g += LANE) add(times + g, origin + g, g, found);
  }

#ifdef __AVX2__
  static __m256i both(const int32_t* values) {
    const __m256i v = _mm256_load_si256(reinterpret_cast<const __m256i*>(values));
    return _mm256_or_si256(_mm256_and_si256(v, _mm256_set1_epi32(0xffff)), _mm256_slli_epi32(v, 16));
  }

  static __m256i at(const int16_t (*pairs)[J][2], int p, int g) {
    return _mm256_load_si256(reinterpret_cast<const __m256i*>(&pairs[p][g][0]));
  }

  static void out(Lanes64& lanes, int g, __m256i v, double times) {
    const __m256d by = _mm256_set1_pd(times);
    lanes.v[g / QUAD] = Four64(_mm256_mul_pd(_mm256_cvtepi32_pd(_mm256_castsi256_si128(v)), by));
    lanes.v[g / QUAD + 1] = Four64(_mm256_mul_pd(_mm256_cvtepi32_pd(_mm256_extracti128_si256(v, 1)), by));
  }

  // Of the run of 8 that each byte lies in.
  static __m256i of_run(const int8_t* table, __m256i run, __m256i bytes) {
    const auto half = [](const int8_t* t) {
      return _mm256_broadcastsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i*>(t)));
    };
    return _mm256_blendv_epi8(_mm256_shuffle_epi8(half(table), run), _mm256_shuffle_epi8(half(table + 16), run), bytes);
  }

  // Levels of two vectors of quotients.
  static void levels(__m256i* two) {
    const __m256i bytes = _mm256_packs_epi16(two[0], two[1]);
    const __m256i run = _mm256_and_si256(_mm256_srli_epi16(bytes, 3), _mm256_set1_epi8(15));
    const __m256i above = _mm256_cmpgt_epi8(bytes, of_run(RUNS.until, run, bytes));
    const __m256i more = _mm256_and_si256(above, of_run(RUNS.more, run, bytes));
    const __m256i level = _mm256_add_epi8(of_run(RUNS.first, run, bytes), more);
    two[0] = _mm256_srai_epi16(_mm256_unpacklo_epi8(level, level), 8);
    two[1] = _mm256_srai_epi16(_mm256_unpackhi_epi8(level, level), 8);
  }

  void add(const int32_t* times, const int32_t* origin, int g, Sums64& found) const {
    const __m256i by = both(times), from = FORM == AFFINE ? both(origin) : _mm256_setzero_si256();
    const __m256i least = _mm256_set1_epi16(int16_t(low)), most = _mm256_set1_epi16(int16_t(top + low));
    __m256i code = _mm256_setzero_si256(), square = code, cross = code;
    for (int p = 0; p < PAIRS; p += 2) {
      __m256i c[2];
      for (int k = 0; k < 2; ++k) {
        const __m256i x = at(u, p + k, g);
        c[k] = _mm256_mulhrs_epi16(FORM == AFFINE ? _mm256_sub_epi16(x, from) : x, by);
        if (FORM != TABLE) c[k] = _mm256_min_epi16(_mm256_max_epi16(c[k], least), most);
      }
      if (FORM == TABLE) levels(c);
      for (int k = 0; k < 2; ++k) {
        const __m256i much = WEIGHTED ? at(w, p + k, g) : c[k], product = WEIGHTED ? at(uw, p + k, g) : at(u, p + k, g);
        if (FORM == AFFINE)
          code = WEIGHTED ? _mm256_add_epi32(code, _mm256_madd_epi16(much, c[k])) : _mm256_add_epi16(code, c[k]);
        square = _mm256_add_epi32(square, _mm256_madd_epi16(WEIGHTED ? _mm256_mullo_epi16(much, c[k]) : c[k], c[k]));
        cross = _mm256_add_epi32(cross, _mm256_madd_epi16(product, c[k]));
      }
    }
    constexpr double share = WEIGHTED ? 1.0 / FULL : 1.0;
    if (FORM == AFFINE) out(found.code, g, WEIGHTED ? code : _mm256_madd_epi16(code, _mm256_set1_epi16(1)), share);
    out(found.square, g, square, share);
    out(found.cross, g, cross, 1.0);
  }
#else
  static int32_t code_of(int32_t quotient, int low, int high) {
    if (FORM != TABLE) return quotient < low ? low : quotient > high ? high : quotient;
    return level_of(quotient < -128 ? -128 : quotient > 127 ? 127 : quotient);
  }

  void add(const int32_t* times, const int32_t* origin, int g, Sums64& found) const {
    constexpr double share = WEIGHTED ? 1.0 / FULL : 1.0;
    for (int j = 0; j < LANE; ++j) {
      int32_t code = 0, square = 0, cross = 0;
      for (int p = 0; p < PAIRS; ++p)
        for (int k = 0; k < 2; ++k) {
          const int32_t x = u[p][g + j][k], from = FORM == AFFINE ? origin[j] : 0;
          const int32_t c = code_of((((x - from) * times[j] >> 14) + 1) >> 1, low, top + low);
          code += WEIGHTED ? w[p][g + j][k] * c : c;
          square += WEIGHTED ? w[p][g + j][k] * c * c : c * c;
          cross += (WEIGHTED ? uw[p][g + j][k] : x) * c;
        }
      put(found.code, g + j, code * share);
      put(found.square, g + j, square * share);
      put(found.cross, g + j, double(cross));
    }
  }
#endif

  // The best codes of every sub-block so far: their sums, and the refit to them: slope cross / square.
  struct Best {
    Lanes64 gain, cross, square, code, own;
  };

  void judge(const Sums64& found, Best& best) const {
    for (int v = 0; v < V; ++v) {
      Four64 cross = found.cross.v[v], square = found.square.v[v];
      if (FORM == AFFINE) {
        cross = count.v[v] * cross - sum.v[v] * found.code.v[v];
        square = count.v[v] * square - found.code.v[v] * found.code.v[v];
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
    const double half = double(range) * 0.5, each = 1.0 / top;
    Lanes64 begin[MOST_RATIOS], end[MOST_RATIOS], step, place;
    for (int v = 0; v < V; ++v) {
      const Four64 mean = sum.v[v] / count.v[v];
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
          place.v[v] = begin[a].v[v] - low * step.v[v];
        }
        sums(step, place, found);
        judge(found, best);
      }
    for (int r = 0; r < type.refits; ++r) {
      for (int v = 0; v < V; ++v) {
        const Four64 slope = best.cross.v[v] / best.square.v[v];
        step.v[v] = of(best.gain.v[v] > 0.0, slope, Four64{} + half);
        place.v[v] = within((sum.v[v] - step.v[v] * best.code.v[v]) / count.v[v]);
      }
      sums(step, place, found);
      judge(found, best);
    }
  }

  static Four64 within(Four64 place) { return larger(lesser(place, Four64{} + 30000.0), Four64{} - 30000.0); }

  void signed_candidates(Best& best) const {
    const double reach = FORM == TABLE ? 127.0 : double(-low), half = double(range) * 0.5;
    Lanes64 step, place = {};
    Sums64 found;
    for (int k = 0; k < type.ratio_count; ++k)
      for (int sign = 0; sign < 2; ++sign) {
        const double size = half * type.ratios[k] / reach;
        for (int v = 0; v < V; ++v) step.v[v] = Four64{} + (sign ? size : -size);
        sums(step, place, found);
        judge(found, best);
      }
  }

  // Scale and offset of every sub-block by itself.
  void alone() {
    Best best = {};
    for (int v = 0; v < V; ++v) best.square.v[v] = Four64{} + 1.0;
    FORM == AFFINE ? affine_candidates(best) : signed_candidates(best);
    for (int v = 0; v < V; ++v) {
      const Four64 slope = best.cross.v[v] / best.square.v[v] * per.v[v];
      scale.v[v] = slope;
      squares.v[v] = best.own.v[v];
      if (FORM == AFFINE) {
        const Four64 place = (sum.v[v] * per.v[v] - slope * best.code.v[v]) / count.v[v];
        offset.v[v] = middle.v[v] + place + double(low) * slope;
        codes.v[v] = best.code.v[v] - double(low) * count.v[v];
        squares.v[v] = best.own.v[v] - 2.0 * low * best.code.v[v] + double(low) * low * count.v[v];
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
    return (codes.v[v] / count.v[v] * moved - offset.v[v]) * inverse;
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
          lost += 2.0 * codes.v[v] * moved * shifted + count.v[v] * shifted * shifted;
        }
        least = k ? lesser(lost, least) : lost;
      }
      found.v[v] = least * factor.v[v];
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
      size.v[v] = choice.d * own.v[v] * unit.v[v];
      step.v[v] = of(size.v[v] != 0.0, size.v[v], Four64{} + double(range));
      if (FORM == AFFINE)
        place.v[v] = within((-choice.dm * minimum.v[v] - middle.v[v]) * unit.v[v] - double(low) * size.v[v]);
    }
    Sums64 found;
    sums(step, place, found);
    for (int v = 0; v < V; ++v) {
      const Four64 s = size.v[v], p = place.v[v];
      Four64 error = power.v[v] - 2.0 * s * found.cross.v[v] + s * s * found.square.v[v];
      if (FORM == AFFINE)
        error += 2.0 * p * (s * found.code.v[v] - sum.v[v]) + count.v[v] * p * p;
      error = error * per.v[v] * per.v[v] * factor.v[v];
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
      const double s = found.scale[j], f = factor[j];
      if (FORM != AFFINE) {
        square += f * s * s * found.sums.square[j];
        cross += f * s * found.sums.cross[j] * per[j];
        continue;
      }
      const double m = found.minimum[j], n = count[j], l = low;
      const double code = found.sums.code[j] - l * n;
      const double own = found.sums.square[j] - 2 * l * found.sums.code[j] + l * l * n;
      const double all = sum[j] * per[j] + n * middle[j];
      const double product = (found.sums.cross[j] - l * sum[j]) * per[j] + middle[j] * code;
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
      read(x, WEIGHTED ? importance + column : nullptr, WEIGHTED ? much + column / N : nullptr);
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
