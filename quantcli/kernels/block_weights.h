// The weights of a super-block as whole numbers, and sums over the codes that a scale and an offset give them.
//
// Weights, candidates and codes are whole numbers of 16 bits, each sub-block in a lane of its own, so that sums are
// exact and need no folding.

#pragma once

#include "common.h"
#include "search.h"

namespace {

enum Form : int32_t { AFFINE = 0, SIGNED = 1, TABLE = 2 };

// What a type of super-block stores, and how scales are searched, field by field as records.py declares it; table.py
// says what each is.
struct BlockType {
  int32_t form, bits, sub, low, high, deepest, range_bits, refits, rounds, ratio_count, factor_count;
  const double *ratios, *factors;
};

constexpr int SUPER = 256, LANE = 8, QUAD = 4;
constexpr int FULL = 256;  // the importance of the column of a sub-block that counts most
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

template <int FORM, int N, bool WEIGHTED>
struct BlockWeights {
  static constexpr int J = SUPER / N, PAIRS = N / 2, V = J / QUAD;

  struct Lanes64 {
    Four64 v[V];
    double operator[](int j) const { return v[j / QUAD][j % QUAD]; }
  };

  // Sums over the codes of every sub-block: of codes, of their squares, of their products with the weights.
  struct Sums64 {
    Lanes64 code, square, cross;
  };

  const int low, top;
  const float range;
  alignas(32) int16_t u[PAIRS][J][2];  // weights in units of their own
  alignas(32) int16_t w[PAIRS][J][2];  // importances, FULL at most
  alignas(32) int16_t uw[PAIRS][J][2];
  Lanes64 count, sum, power;           // of importances, weights, their squares
  Lanes64 middle, unit, per, factor;   // a weight is middle + u * per; factor: how much the sub-block counts

  explicit BlockWeights(const BlockType& t)
      : low(-(1 << (t.bits - 1))), top((1 << t.bits) - 1), range(float(1 << t.range_bits)) {}

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

  // By itself: compilers take twice as long where it is part of each of its callers, and its code is no faster.
  __attribute__((noinline)) void add(const int32_t* times, const int32_t* origin, int g, Sums64& found) const {
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
};

}  // namespace
