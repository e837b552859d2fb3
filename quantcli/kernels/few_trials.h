// The best of several scales of groups for up to 16 levels, in whole numbers of 16 bits.
//
// The largest level becomes 2^10 to 2^11, so that a step of 16 even levels is some 200 and rounding a weight to a whole
// number changes its error by a thousandth. A quotient is the weight over the smallest trial scale times a fraction; it
// counts up to 16,383, an error up to 8,191: eight and four times the largest level at least. Sums of squares are exact,
// so that their order is free; those of 64 weights fit 32 bits. numpy_levels.py does the same arithmetic.

#pragma once

#include "levels.h"
#include "search.h"
#include "trials.h"

namespace {

constexpr int LEVEL_BITS = 11, MOST_QUOTIENT = 16383, MOST_ERROR = 8191, AT_MOST = 64;

// Levels as whole numbers, the last one repeated, and their unit.
struct WholeLevels {
  float unit;
  int16_t level[FEW_LEVELS];

  explicit WholeLevels(const Table& table) {
    const float low = std::fabs(table.sorted[0]), high = std::fabs(table.sorted[table.count - 1]);
    int exponent = 0;
    std::frexp(low > high ? low : high, &exponent);
    exponent = LEVEL_BITS - exponent;
    unit = std::ldexp(1.0f, exponent < 126 ? exponent : 126);
    for (int i = 0; i < FEW_LEVELS; ++i)
      level[i] = int16_t(std::nearbyintf(table.sorted[i < table.count ? i : table.count - 1] * unit));
  }

  // Between levels i and i + 1: quotients above it are nearer to the latter, or as near.
  int16_t threshold(int i) const { return int16_t((int(level[i]) + int(level[i + 1])) >> 1); }

  // The squared error of a weight that is 0.
  uint32_t of_zero() const {
    int least = MOST_ERROR;
    for (int l : level) least = std::abs(l) < least ? std::abs(l) : least;
    return uint32_t(least) * uint32_t(least);
  }
};

// A weight over the smallest scale, in units of the levels, within what counts.
inline float limited(float quotient) {
  const float most = MOST_QUOTIENT, high = quotient < most ? quotient : most;
  return high > -most ? high : -most;
}

// The fraction that makes of a quotient by the smallest scale that by another one.
inline int16_t fraction_of(float smallest, float scale) {
  const float found = std::nearbyintf(smallest / scale * 32768.0f);
  return int16_t(found < 32767.0f ? found : 32767.0f);
}

#if defined(__AVX2__)

#if defined(__AVX512BW__) && defined(__AVX512VL__) && defined(__AVX512VNNI__)

// The errors of quotients: the pair of neighbours among the levels by a binary search, then the nearer one.
struct FewErrors {
  Pairs half, first, third, quarters, even, odd, most = all_pairs(MOST_ERROR);

  explicit FewErrors(const WholeLevels& of)
      : half(all_pairs(of.threshold(7))), first(all_pairs(of.threshold(3))), third(all_pairs(of.threshold(11))) {
    int16_t table[3][STRIDE] = {};
    for (int i = 0; i < 4; ++i) table[0][2 * i] = of.threshold(4 * i + 1);
    for (int i = 0; i < 8; ++i) table[1][i] = of.level[2 * i], table[2][i] = of.level[2 * i + 1];
    quarters = load_pairs(table[0]), even = load_pairs(table[1]), odd = load_pairs(table[2]);
  }

  Pairs of(Pairs t) const {
    const __mmask32 upper = _mm512_cmpgt_epi16_mask(t, half);
    Pairs at = _mm512_maskz_mov_epi16(upper, all_pairs(4));
    at = after(at, t, _mm512_mask_blend_epi16(upper, first, third), all_pairs(2));
    at = after(at, t, _mm512_permutexvar_epi16(at, quarters), all_pairs(1));
    const Pairs a = _mm512_abs_epi16(_mm512_sub_epi16(t, _mm512_permutexvar_epi16(at, even)));
    const Pairs b = _mm512_abs_epi16(_mm512_sub_epi16(t, _mm512_permutexvar_epi16(at, odd)));
    return _mm512_min_epi16(_mm512_min_epi16(a, b), most);
  }

  static Pairs after(Pairs at, Pairs t, Pairs threshold, Pairs step) {
    return _mm512_mask_add_epi16(at, _mm512_cmpgt_epi16_mask(t, threshold), at, step);
  }
};

inline Pairs quotients(Pairs u, Pairs fraction) { return _mm512_mulhrs_epi16(u, fraction); }
constexpr int TRIALS_AT_ONCE = 4;

#else

struct FewErrors {
  Pairs half, first, third, quarters, even, odd, most = all_pairs(MOST_ERROR);

  explicit FewErrors(const WholeLevels& of)
      : half(all_pairs(of.threshold(7))), first(all_pairs(of.threshold(3))), third(all_pairs(of.threshold(11))) {
    int16_t table[3][STRIDE] = {};
    for (int i = 0; i < STRIDE; ++i) {
      table[0][i] = of.threshold(i % 8 / 2 * 4 + 1);
      table[1][i] = of.level[i % 8 * 2], table[2][i] = of.level[i % 8 * 2 + 1];
    }
    quarters = load_pairs(table[0]), even = load_pairs(table[1]), odd = load_pairs(table[2]);
  }

  // Places are those of two bytes: 0x0100 + 0x0202 times the number of the pair.
  Pairs of(Pairs t) const {
    const Pairs upper = _mm256_cmpgt_epi16(t, half);
    Pairs at = _mm256_blendv_epi8(all_pairs(0x0100), all_pairs(0x0908), upper);
    at = after(at, t, _mm256_blendv_epi8(first, third, upper), all_pairs(0x0404));
    at = after(at, t, _mm256_shuffle_epi8(quarters, at), all_pairs(0x0202));
    const Pairs a = _mm256_abs_epi16(_mm256_sub_epi16(t, _mm256_shuffle_epi8(even, at)));
    const Pairs b = _mm256_abs_epi16(_mm256_sub_epi16(t, _mm256_shuffle_epi8(odd, at)));
    return _mm256_min_epi16(_mm256_min_epi16(a, b), most);
  }

  static Pairs after(Pairs at, Pairs t, Pairs threshold, Pairs step) {
    return _mm256_add_epi16(at, _mm256_and_si256(_mm256_cmpgt_epi16(t, threshold), step));
  }
};

inline Pairs quotients(Pairs u, Pairs fraction) { return _mm256_mulhrs_epi16(u, fraction); }
constexpr int TRIALS_AT_ONCE = 2;

#endif
#endif

struct FewTrials {
  const Tile& tile;
  const Trials& trials;
  const WholeLevels levels;

  FewTrials(const Tile& tile, const Table& table, const Trials& trials) : tile(tile), trials(trials), levels(table) {}

#if defined(__AVX2__)
  static constexpr int MOST_SCALES = LIMITS.trials + TRIALS_AT_ONCE;

  // The trial scales of groups that lie side by side, and the sums of each.
  struct Lanes {
    float scale[MOST_SCALES][ABREAST], smallest[ABREAST], reciprocal[ABREAST];
    int32_t fraction[MOST_SCALES][ABREAST];
    uint32_t sum[MOST_SCALES][ABREAST];
    double total[MOST_SCALES][ABREAST];
  };

  // The trials of `own` groups from one on, the last one repeated; lanes without a group have any.
  void set(Lanes& lanes, int64_t group, int own, int scales) const {
    for (int i = 0; i < ABREAST; ++i) {
      const float* from = trials.trial + trials.begin(group + (i < own ? i : 0));
      for (int k = 0; k < scales; ++k) lanes.scale[k][i] = from[k < trials.count ? k : trials.count - 1];
      lanes.smallest[i] = std::fabs(from[0]);
    }
    for (int k = 1; k < trials.count; ++k)
      for (int i = 0; i < ABREAST; ++i) lanes.smallest[i] = lesser(std::fabs(lanes.scale[k][i]), lanes.smallest[i]);
    for (int i = 0; i < ABREAST; ++i) lanes.reciprocal[i] = 1.0f / lanes.smallest[i];
    for (int k = 0; k < scales; ++k)
      for (int i = 0; i < ABREAST; ++i) {
        const int32_t f = fraction_of(lanes.smallest[i], lanes.scale[k][i]);
        lanes.fraction[k][i] = int32_t(uint32_t(f) << 16 | (uint32_t(f) & 0xffff));
        lanes.total[k][i] = 0;
      }
  }

  // Sums of pairs of weights under several trials.
  static void add(const Pairs* u, int filled, const FewErrors& errors, int k, Lanes& lanes) {
    Pairs by[TRIALS_AT_ONCE], sum[TRIALS_AT_ONCE];
    for (int j = 0; j < TRIALS_AT_ONCE; ++j) by[j] = load_pairs(lanes.fraction[k + j]), sum[j] = all_pairs(0);
    for (int p = 0; p < filled; ++p)
      for (int j = 0; j < TRIALS_AT_ONCE; ++j) {
        const Pairs e = errors.of(quotients(u[p], by[j]));
        sum[j] = products(sum[j], e, e);
      }
    for (int j = 0; j < TRIALS_AT_ONCE; ++j) store_pairs(sum[j], lanes.sum[k + j]);
  }

  template <int KIND>
  void abreast(int32_t* best) const {
    const FewErrors errors(levels);
    const Sixteen unit = all(levels.unit), most = all(MOST_QUOTIENT), least = all(-MOST_QUOTIENT);
    const double of_zero = levels.of_zero();
    const int scales = (trials.count + TRIALS_AT_ONCE - 1) / TRIALS_AT_ONCE * TRIALS_AT_ONCE;
    alignas(64) Pairs u[AT_MOST / 2];
    alignas(64) Lanes lanes;
    SomeGroups where;
    for (int64_t batch = 0; batch < tile.rows * tile.groups(); batch += ABREAST) {
      const int own = where.set(tile, batch);
      set(lanes, batch, own, scales);
      const auto scaled = [&](int i, int64_t, Sixteen x) {
        return larger(lesser(x * all(lanes.reciprocal[i]) * unit, most), least);
      };
      int64_t places = 0;
      for (int64_t first = 0, n = where.longest(); first < n; first += AT_MOST) {
        const int filled = where.read<KIND>(tile.weights, first, n - first < AT_MOST ? n - first : AT_MOST, scaled, u);
        places += 2 * filled;
        for (int k = 0; k < scales; k += TRIALS_AT_ONCE) add(u, filled, errors, k, lanes);
        for (int k = 0; k < trials.count; ++k)
          for (int i = 0; i < ABREAST; ++i) lanes.total[k][i] += double(lanes.sum[k][i]);
      }
      judge(lanes, where, double(places), of_zero, own, best + batch);
    }
  }

  // The first trial of least error of each group; places that it does not have count as zeros.
  void judge(const Lanes& lanes, const SomeGroups& where, double places, double of_zero, int own, int32_t* best) const {
    double least[ABREAST];
    int32_t found[ABREAST] = {};
    for (double& error : least) error = INFINITY;
    for (int k = 0; k < trials.count; ++k)
      for (int i = 0; i < ABREAST; ++i) {
        const double s = lanes.scale[k][i], sum = lanes.total[k][i] - (places - double(where.length[i])) * of_zero;
        const double error = s * s * sum;
        found[i] = error < least[i] ? k : found[i];
        least[i] = error < least[i] ? error : least[i];
      }
    for (int i = 0; i < own; ++i) best[i] = found[i];
  }

  void run(int32_t* best) const {
    with_kind(tile.kind, [&](auto kind) { this->abreast<kind>(best); });
  }
#else
  // The squared errors of up to AT_MOST weights.
  uint32_t sum(const int16_t* u, int n, int32_t fraction) const {
    int16_t t[AT_MOST], error[AT_MOST];
    for (int i = 0; i < n; ++i) t[i] = int16_t((u[i] * fraction + 0x4000) >> 15), error[i] = MOST_ERROR;
    for (int16_t level : levels.level)
      for (int i = 0; i < n; ++i) {
        const int16_t above = int16_t(t[i] - level), below = int16_t(level - t[i]);
        const int16_t away = above > below ? above : below;
        error[i] = away < error[i] ? away : error[i];
      }
    uint32_t found = 0;
    for (int i = 0; i < n; ++i) found += uint32_t(int32_t(error[i]) * error[i]);
    return found;
  }

  int32_t of_group(int64_t at, int64_t n, const float* own) const {
    float smallest = std::fabs(own[0]);
    for (int k = 1; k < trials.count; ++k) smallest = lesser(std::fabs(own[k]), smallest);
    const float by = 1.0f / smallest;
    double total[LIMITS.trials] = {};
    for (int64_t first = 0; first < n; first += AT_MOST) {
      const int m = int(n - first < AT_MOST ? n - first : AT_MOST);
      float x[AT_MOST];
      int16_t u[AT_MOST];
      load(tile.weights, tile.kind, at + first, m, x);
      for (int i = 0; i < m; ++i) u[i] = int16_t(to_bits(limited(x[i] * by * levels.unit) + 12582912.0f));
      for (int k = 0; k < trials.count; ++k) total[k] += double(sum(u, m, fraction_of(smallest, own[k])));
    }
    int32_t found = 0;
    double least = INFINITY;
    for (int k = 0; k < trials.count; ++k) {
      const double s = own[k], error = s * s * total[k];
      if (error < least) least = error, found = k;
    }
    return found;
  }

  void run(int32_t* best) const {
    const int64_t across = tile.groups();
    for (int64_t here = 0; here < tile.rows * across; ++here) {
      const int64_t begin = here % across * tile.group;
      best[here] = of_group(here / across * tile.cols + begin, tile.length(begin), trials.trial + trials.begin(here));
    }
  }
#endif
};

}  // namespace
